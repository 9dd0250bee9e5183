"""The embedded default: PostgreSQL from a wheel, the supervisor and the sample organisation."""

"""Change data capture: a PostgreSQL source's changes and snapshots as Arrow change frames."""

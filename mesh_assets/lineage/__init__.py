"""Lineage: OpenLineage run events, built by pure functions and kept in a Delta table."""

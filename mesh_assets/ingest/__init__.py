"""Ingestion: a source drained into the change logs of its products."""

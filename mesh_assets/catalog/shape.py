"""The tables of the enterprise catalog: what a row of each is, and in which order rows lie."""

from __future__ import annotations

import pyarrow as pa

from mesh_assets.catalog.canonical import Shape

_MOMENT = pa.timestamp("us", tz="UTC")
_TEXTS = pa.list_(pa.string())
_COUNTS = pa.map_(pa.string(), pa.int64())

DATASETS = Shape(
    "datasets",
    pa.schema(
        [
            ("dataset", pa.string()),
            ("domain", pa.string()),
            ("product", pa.string()),
            ("table", pa.string()),
            ("is_default", pa.bool_()),
            ("derived", pa.bool_()),
            ("status", pa.string()),
            ("business_name", pa.string()),
            ("description", pa.string()),
            ("product_description", pa.string()),
            ("usage", pa.string()),
            ("limitations", pa.string()),
            ("owners", _TEXTS),
            ("tags", _TEXTS),
            ("key", _TEXTS),
            ("promises", _TEXTS),
            ("inputs", _TEXTS),
            ("source_table", pa.string()),
            ("contract_version", pa.string()),
            ("contract_hash", pa.string()),
            ("contract_file", pa.string()),
            ("released_at", _MOMENT),
            ("latency_seconds", pa.float64()),
            ("version", pa.int64()),
            ("version_hash", pa.string()),
            ("parents", _COUNTS),
            ("run_id", pa.string()),
            ("committed_at", _MOMENT),
            ("created_at", _MOMENT),
            ("change_count", pa.int64()),
            ("folded_row_count", pa.int64()),
            ("folded_seq", pa.int64()),
            ("schema_version", pa.int64()),
            ("published_at", _MOMENT),
        ]
    ),
    ("dataset",),
    ("dataset", "domain", "product"),
    "One row per table of a product: what it promises and how it stands.",
)

COLUMNS = Shape(
    "columns",
    pa.schema(
        [
            ("dataset", pa.string()),
            ("domain", pa.string()),
            ("product", pa.string()),
            ("table", pa.string()),
            ("column", pa.string()),
            ("ordinal", pa.int64()),
            ("logical_type", pa.string()),
            ("physical_type", pa.string()),
            ("lake_type", pa.string()),
            ("key", pa.bool_()),
            ("required", pa.bool_()),
            ("unique", pa.bool_()),
            ("classification", pa.string()),
            ("business_name", pa.string()),
            ("description", pa.string()),
            ("tags", _TEXTS),
            ("since", _MOMENT),
            ("statistics", pa.string()),
        ]
    ),
    ("dataset", "ordinal", "column"),
    ("dataset", "column", "domain"),
    "One row per promised column.",
)

EDGES = Shape(
    "edges",
    pa.schema(
        [
            ("kind", pa.string()),
            ("origin", pa.string()),
            ("from_namespace", pa.string()),
            ("from_name", pa.string()),
            ("from_dataset", pa.string()),
            ("from_kind", pa.string()),
            ("from_column", pa.string()),
            ("to_namespace", pa.string()),
            ("to_name", pa.string()),
            ("to_dataset", pa.string()),
            ("to_kind", pa.string()),
            ("to_column", pa.string()),
            ("type", pa.string()),
            ("subtype", pa.string()),
            ("description", pa.string()),
            ("masking", pa.bool_()),
            ("job", pa.string()),
            ("statement", pa.string()),
            ("run_id", pa.string()),
            ("first_delta_version", pa.int64()),
            ("last_delta_version", pa.int64()),
            ("row_count", pa.int64()),
            ("first_seen_at", _MOMENT),
            ("last_seen_at", _MOMENT),
        ]
    ),
    (
        *("kind", "origin", "to_dataset", "to_kind", "to_namespace", "to_name", "to_column"),
        *("from_dataset", "from_kind", "from_namespace", "from_name", "from_column", "type", "subtype"),
        *("statement", "job", "run_id", "first_seen_at", "last_seen_at"),
        *("first_delta_version", "last_delta_version", "row_count", "description", "masking"),
    ),
    ("to_dataset", "from_dataset", "run_id", "first_seen_at"),
    "What is made of what: tables and columns (from contracts and from lineage), and what each run "
    "read (from) and wrote (to).",
)

RUNS = Shape(
    "runs",
    pa.schema(
        [
            ("run_id", pa.string()),
            ("namespace", pa.string()),
            ("job", pa.string()),
            ("kind", pa.string()),
            ("processing", pa.string()),
            ("state", pa.string()),
            ("started_at", _MOMENT),
            ("ended_at", _MOMENT),
            ("seen_at", _MOMENT),
            ("parent_run_id", pa.string()),
            ("parent_namespace", pa.string()),
            ("parent_job", pa.string()),
            ("error", pa.string()),
        ]
    ),
    ("run_id",),
    ("run_id", "started_at"),
    "One row per lineage run: what it was, how it ended.",
)

CHECKS = Shape(
    "checks",
    pa.schema(
        [
            ("product", pa.string()),
            ("domain", pa.string()),
            ("rule", pa.string()),
            ("table", pa.string()),
            ("columns", _TEXTS),
            ("outcome", pa.string()),
            ("severity", pa.string()),
            ("blocking", pa.bool_()),
            ("dimension", pa.string()),
            ("description", pa.string()),
            ("message", pa.string()),
            ("observed", pa.string()),
            ("unexpected_count", pa.int64()),
            ("row_count", pa.int64()),
            ("quarantined_count", pa.int64()),
            ("version", pa.int64()),
            ("run_id", pa.string()),
            ("at", _MOMENT),
        ]
    ),
    ("product", "rule"),
    ("product", "outcome"),
    "One row per rule: how it came out at the newest evaluation.",
)

DOMAINS = Shape(
    "domains",
    pa.schema(
        [
            ("domain", pa.string()),
            ("description", pa.string()),
            ("owner", pa.string()),
            ("sources", _TEXTS),
            ("product_count", pa.int64()),
            ("derived_count", pa.int64()),
            ("table_count", pa.int64()),
        ]
    ),
    ("domain",),
    ("domain",),
    "One row per domain.",
)

CHANGES = Shape(
    "changes",
    pa.schema(
        [
            ("product", pa.string()),
            ("domain", pa.string()),
            ("version", pa.int64()),
            ("committed_at", _MOMENT),
            ("created_at", _MOMENT),
            ("row_count", _COUNTS),
            ("change_count", pa.int64()),
            ("tables", _COUNTS),
            ("lsn", pa.int64()),
            (
                "positions",
                pa.list_(
                    pa.struct(
                        [
                            ("input", pa.string()),
                            ("lsn", pa.int64()),
                            ("ordinal", pa.int64()),
                            ("end_lsn", pa.int64()),
                        ]
                    )
                ),
            ),
            ("parents", _COUNTS),
            ("contract_hash", pa.string()),
            ("code_version", pa.string()),
            ("run_id", pa.string()),
            ("actor", pa.string()),
            ("previous_hash", pa.string()),
            ("hash", pa.string()),
            ("generations", _COUNTS),
        ]
    ),
    ("product", "version"),
    ("product", "version", "created_at"),
    "The consolidated change history, one row per product version. tables holds the last _seq of each "
    "change log that belongs to it: its changes are the ones after those of the version before.",
)

SHAPES = {shape.name: shape for shape in (DATASETS, COLUMNS, EDGES, RUNS, CHECKS, DOMAINS, CHANGES)}
"""Every table by name."""

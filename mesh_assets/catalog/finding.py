"""What is wrong in the enterprise catalog: orphans, nobody's products, stale ones, failing ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

from mesh_assets.catalog.canonical import Canonical, Shape
from mesh_assets.catalog.shape import CHANGES, CHECKS, DATASETS, DOMAINS, EDGES, RUNS
from mesh_assets.names import Layout

Kind = Literal["orphan", "unowned", "stale", "failing"]
KINDS: tuple[Kind, ...] = ("orphan", "unowned", "stale", "failing")

SILENT = timedelta(days=1)
"""A product whose record was not written for so long is not looked after by anybody."""

GRACE = timedelta(seconds=60)
"""What a derived product may lag behind its promise before it is called stale."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that somebody should look at.

    Attributes:
        kind: orphan, unowned, stale or failing.
        subject: the product, dataset or domain.
        message: what is wrong, in a sentence.
        owners: whose it is.
        severity: ``error`` if consumers are or will be harmed, else ``warning``.
    """

    kind: Kind
    subject: str
    message: str
    owners: tuple[str, ...] = ()
    severity: Literal["error", "warning"] = "warning"


@dataclass(frozen=True)
class Catalog:
    """The rows that findings are made of, by table."""

    datasets: list[dict[str, Any]]
    domains: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    moments: Mapping[tuple[str, int], datetime] = field(default_factory=dict)

    @classmethod
    def load(cls, layout: Layout) -> Catalog:
        """Read them from the enterprise catalog."""

        def rows(shape: Shape, columns: list[str] | None = None) -> list[dict[str, Any]]:
            table = Canonical(layout.enterprise(shape.name), shape)
            found: list[dict[str, Any]] = table.read(columns=columns).to_pylist()
            return found

        edges = Canonical(layout.enterprise(EDGES.name), EDGES)
        declared = edges.read([name for name in edges.buckets() if name.startswith("d")])
        datasets = rows(DATASETS)
        return cls(
            datasets=datasets,
            domains=rows(DOMAINS),
            checks=rows(CHECKS),
            runs=rows(RUNS, ["run_id", "namespace", "job", "kind", "state", "started_at", "error"]),
            edges=declared.select(["kind", "from_dataset", "from_kind", "to_dataset"]).to_pylist(),
            moments=_moments(layout, datasets),
        )


def findings(
    catalog: Catalog, *, now: datetime | None = None, defined: Collection[str] | None = None
) -> list[Finding]:
    """Everything that is wrong, sorted.

    Args:
        catalog: what the enterprise catalog holds.
        now: the moment to judge by.
        defined: the products that have a folder; None: not known.
    """
    at = now or datetime.now(UTC)
    return sorted(
        {
            *orphans(catalog, defined),
            *unowned(catalog),
            *stale(catalog, at),
            *failing(catalog),
        }
    )


def orphans(catalog: Catalog, defined: Collection[str] | None = None) -> Iterable[Finding]:
    """Products without a folder, and inputs that no product publishes."""
    owners = _owners(catalog)
    if defined is not None:
        for product in sorted(owners.keys() - set(defined)):
            yield Finding(
                "orphan",
                product,
                f"{product} lies in the lake, but no folder defines it any more",
                owners[product],
            )
    known = {row["dataset"] for row in catalog.datasets}
    for edge in catalog.edges:
        missing = edge["from_dataset"]
        if edge["kind"] == "table" and edge["from_kind"] == "current" and missing not in known:
            reader = edge["to_dataset"]
            product = ".".join(reader.split(".")[:2])
            yield Finding(
                "orphan",
                reader,
                f"{reader} is made of {missing}, which no product publishes",
                owners.get(product, ()),
                "error",
            )


def unowned(catalog: Catalog) -> Iterable[Finding]:
    """Products and domains that belong to nobody."""
    for product, theirs in _owners(catalog).items():
        if not any(owner.strip() for owner in theirs):
            yield Finding("unowned", product, f"{product} has no owner")
    for row in catalog.domains:
        if not (row["owner"] or "").strip():
            yield Finding("unowned", row["domain"], f"domain {row['domain']} has no owner")


def stale(catalog: Catalog, now: datetime) -> Iterable[Finding]:
    """Products that nobody looks after, and derived ones that are behind what they promise.

    A captured product without changes is not stale: its source may be silent.
    """
    newest = _products(catalog)
    for product, row in newest.items():
        owners = tuple(row["owners"] or ())
        silent = now - row["published_at"]
        if silent > SILENT:
            yield Finding("stale", product, f"no shift of {product} has run for {_length(silent)}", owners)
        for parent, held in row["parents"] or ():
            source = newest.get(parent)
            if source is None or (source["version"] or 0) <= held:
                continue
            # What waits since when: the oldest version that was not taken yet.
            waiting = catalog.moments.get((parent, held + 1)) or source["created_at"]
            promised = timedelta(seconds=row["latency_seconds"] or 0)
            if now - waiting > promised + GRACE:
                yield Finding(
                    "stale",
                    product,
                    f"{product} holds version {held} of {parent}, which is at version {source['version']}; "
                    f"the next one waits for {_length(now - waiting)}",
                    owners,
                    "error",
                )


def failing(catalog: Catalog) -> Iterable[Finding]:
    """Rules that are not met, and jobs whose newest run failed."""
    owners = _owners(catalog)
    for row in catalog.checks:
        if row["outcome"] not in ("failed", "error", "warning"):
            continue
        found = row["message"] or (
            f"{row['unexpected_count']:,} of {row['row_count'] or 0:,} rows break it"
            if row["unexpected_count"]
            else f"found {row['observed']}"
            if row["observed"]
            else row["outcome"]
        )
        grave = row["blocking"] or (row["severity"] == "error" and row["outcome"] != "warning")
        yield Finding(
            "failing",
            f"{row['product']}: {row['rule']}",
            f"rule {row['rule']} of {row['product']} is not met at version {row['version']}: {found}",
            owners.get(row["product"], ()),
            "error" if grave else "warning",
        )
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in catalog.runs:
        job = (row["namespace"], row["job"])
        if job not in latest or row["started_at"] > latest[job]["started_at"]:
            latest[job] = row
    for (namespace, name), row in latest.items():
        if row["state"] == "FAIL":
            first = (row["error"] or "it says no more").splitlines()[0]
            yield Finding(
                "failing",
                f"{namespace}/{name}",
                f"the newest run of {namespace}/{name} failed: {first}",
                (),
                "error",
            )


def _products(catalog: Catalog) -> dict[str, dict[str, Any]]:
    return {row["product"]: row for row in catalog.datasets}


def _owners(catalog: Catalog) -> dict[str, tuple[str, ...]]:
    return {product: tuple(row["owners"] or ()) for product, row in _products(catalog).items()}


def _moments(layout: Layout, datasets: list[dict[str, Any]]) -> dict[tuple[str, int], datetime]:
    """When the versions were written that a derived product has to take next."""
    wanted = {(parent, held + 1) for row in datasets for parent, held in row["parents"] or ()}
    if not wanted:
        return {}
    products = pa.array(sorted({product for product, _ in wanted}))
    table = Canonical(layout.enterprise(CHANGES.name), CHANGES)
    rows = table.read(columns=["product", "version", "created_at"])
    rows = rows.filter(pa.compute.is_in(rows["product"], products))
    return {
        key: at
        for product, version, at in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        if (key := (product, version)) in wanted
    }


def _length(time: timedelta) -> str:
    seconds = time.total_seconds()
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"

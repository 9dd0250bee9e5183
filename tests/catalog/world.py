"""A lake whose products have versions, checks and lineage, without any source: real tables and commits."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from openlineage.client.event_v2 import RunEvent
from openlineage.client.facet_v2 import column_lineage_dataset as lineage

from mesh_assets.catalog import local
from mesh_assets.catalog.releases import Releases
from mesh_assets.contract.discovery import Discovery, discover
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.table import Table
from mesh_assets.lake.version import InputPosition, VersionLog, VersionRow
from mesh_assets.lineage.event import LineageRun, lake_input, lake_output, new_run_id
from mesh_assets.lineage.store import LineageStore
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName

PRODUCTS = Path(__file__).resolve().parents[2] / "products"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHECKS = pa.schema(
    [
        ("evaluation", pa.int64()),
        ("version", pa.int64()),
        ("rule", pa.string()),
        ("table", pa.string()),
        ("columns", pa.list_(pa.string())),
        ("status", pa.string()),
        ("severity", pa.string()),
        ("blocking", pa.bool_()),
        ("observed", pa.string()),
        ("unexpected_count", pa.int64()),
        ("row_count", pa.int64()),
        ("result", pa.string()),
        ("run_id", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
    ]
)
"""As the gate writes outcomes."""


def sources(discovery: Discovery) -> list[ProductName]:
    """The captured products."""
    return [name for name, product in discovery.products.items() if product.definition.source is not None]


@dataclass
class World:
    """What happens in a lake, told with a clock of its own."""

    layout: Layout
    discovery: Discovery = field(default_factory=lambda: discover(PRODUCTS))
    now: datetime = START
    open_runs: list[tuple[LineageRun, ProductName]] = field(default_factory=list)

    def tick(self, seconds: float = 1.0) -> datetime:
        """Time goes on."""
        self.now += timedelta(seconds=seconds)
        return self.now

    def release(self, name: ProductName) -> None:
        """The product's contract holds from now on."""
        Releases(self.layout.catalog(name)).record(self.discovery.product(name).contract, self.tick())

    def version(self, name: ProductName, parents: dict[str, int] | None = None) -> VersionRow:
        """The product gets one more version."""
        log = VersionLog(self.layout.versions(name))
        product = self.discovery.product(name)
        last = log.latest()
        step = log.records.number + 1
        tables = {table.name: 10 * step for table in product.contract.tables}
        at = self.tick()
        positions = {str(one): InputPosition(number) for one, number in (parents or {}).items()}
        return log.append(
            tables=tables,
            positions=positions or {"app": InputPosition(1000 * step, 1, 1000 * step + 8)},
            row_count={"c": step, "u": 2},
            contract_hash=product.contract.hash,
            code_version="1",
            run_id=f"run-{name}-{(last.version if last else 0) // 5}",
            actor="tester",
            committed_at=at,
            parents=parents,
            created_at=at,
        )

    def publish(self, name: ProductName) -> None:
        """The product's record is written."""
        record = local.make(self.layout, self.discovery, name, at=self.tick())
        folder = Path(self.layout.catalog(name))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / local.RECORD_FILE).write_bytes(record.to_json())

    def check(self, name: ProductName, outcome: str, version: int = 1) -> None:
        """The rules of a product are evaluated."""
        uri = self.layout.catalog(name, "checks")
        table = Table.open(uri) if Table.exists(uri) else Table.create(uri, CHECKS, statistics=["evaluation"])
        number = (table.transaction("evaluation") or 0) + 1
        rows = [
            {
                "evaluation": number,
                "version": version,
                "rule": f"{name.product}.{rule}",
                "table": self.discovery.product(name).contract.tables[0].name,
                "columns": [],
                "status": outcome if rule == "first" else "passed",
                "severity": "error",
                "blocking": rule == "first",
                "observed": "3",
                "unexpected_count": 3,
                "row_count": 10,
                "result": "{}",
                "run_id": "run",
                "at": self.tick(),
            }
            for rule in ("first", "second")
        ]
        table.append(pa.Table.from_pylist(rows, schema=CHECKS), transactions={"evaluation": number})

    def emit(self, *events: RunEvent) -> None:
        """Lineage events become durable."""
        with LineageStore(self.layout.lineage(), log=print) as store:
            store.emit(*events)

    def uri(self, name: ProductName, kind: str, table: str = "") -> str:
        """Where a table of a product lies; its first table without a name."""
        tables = self.discovery.product(name).contract.tables
        return self.layout.table(name, kind, table or tables[0].name)

    def capture(self, name: ProductName, version: int) -> tuple[LineageRun, list[RunEvent]]:
        """A shift's events: begun, one version, not ended."""
        run = LineageRun(
            f"mesh.{name.domain}",
            "app.capture",
            "CAPTURE",
            run_id=new_run_id(self.now),
            streaming=True,
        )
        changes = self.uri(name, CHANGES)
        written = lake_output(changes, first_version=version, version=version + 1, row_count=5)
        return run, [
            run.start(self.tick(), outputs=[lake_output(changes)]),
            run.running(self.tick(), outputs=[written]),
        ]

    def derive(self, name: ProductName, fields: dict[str, list[tuple[str, str, str]]]) -> list[RunEvent]:
        """A derivation's events; ``fields``: column -> (input product's table URI, column, subtype)."""
        run = LineageRun(
            f"mesh.{name.domain}", f"{name.product}.derive", "DERIVE", run_id=new_run_id(self.now)
        )
        facet = lineage.ColumnLineageDatasetFacet(
            fields={
                column: lineage.Fields(
                    inputFields=[
                        lineage.InputField(
                            *_named(uri),
                            field=origin,
                            transformations=[
                                lineage.Transformation(
                                    type="INDIRECT" if subtype == "JOIN" else "DIRECT", subtype=subtype
                                )
                            ],
                        )
                        for uri, origin, subtype in made
                    ]
                )
                for column, made in fields.items()
            }
        )
        output = lake_output(self.uri(name, CHANGES), version=3, row_count=2, facets={"columnLineage": facet})
        inputs = [
            lake_input(uri, version=1) for uri in {uri for made in fields.values() for uri, _, _ in made}
        ]
        return [
            run.start(self.tick(), inputs=inputs, outputs=[output]),
            run.complete(self.tick(), inputs=inputs, outputs=[output]),
        ]

    def log(self, name: ProductName) -> None:
        """The product's first change log and nothing in it."""
        row = pa.schema([("id", pa.int64())])
        ChangeLog.create(self.uri(name, CHANGES), row, ["id"])

    def step(self, chance: random.Random) -> None:
        """Something happens somewhere."""
        name = chance.choice(list(self.discovery.products))
        what = chance.choice(
            ["version", "version", "publish", "publish", "capture", "end", "check", "release"]
        )
        if what == "version":
            for _ in range(chance.choice([1, 1, 3, 40])):
                self.version(name)
        elif what == "publish":
            self.publish(name)
        elif what == "capture":
            run, events = self.capture(name, chance.randrange(50))
            self.open_runs.append((run, name))
            if chance.random() < 0.3:
                events.append(events[-1])  # Delivered twice.
            chance.shuffle(events)
            self.emit(*events)
        elif what == "end" and self.open_runs:
            run, name = self.open_runs.pop(chance.randrange(len(self.open_runs)))
            ended: Any = run.fail(ValueError("no"), self.tick()) if chance.random() < 0.3 else None
            self.emit(ended or run.complete(self.tick()))
            self.emit(*self.derivation(name, chance.randrange(3)))
        elif what == "check":
            self.check(name, chance.choice(["passed", "failed"]), chance.randrange(1, 5))
        else:
            self.release(name)

    def derivation(self, name: ProductName, kind: int) -> list[RunEvent]:
        """One of a few derivations of a product from the customers."""
        customers = self.uri(ProductName("sales", "customers"), CURRENT)
        columns = ["customer_id", "email", "full_name"]
        made = {f"column_{number}": [(customers, columns[number], "IDENTITY")] for number in range(kind + 1)}
        return self.derive(name, made | {"total": [(customers, columns[kind], "AGGREGATION")]})


def _named(uri: str) -> tuple[str, str]:
    from mesh_assets.names import lake_dataset

    return lake_dataset(uri)

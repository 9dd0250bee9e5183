"""One small product over a real source: its contract can be edited, its application is SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from mesh_assets.ingest.shift import Shift
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import CapturePlan
from mesh_assets.shift.report import Budget, ShiftResult, Silent

NAME = ProductName("shop", "things")
PEOPLE = ProductName("shop", "people")
QUICK = Budget(
    idle_seconds=0.1,
    batch_seconds=0.02,
    batch_rows=500,
    snapshot_rows=30,
    claim_seconds=60,
    check_seconds=0.0,
)

_DOMAIN = """\
type: mesh_assets.orchestration.Domain
attributes:
  description: A shop.
  owner: team:shop
  sources:
    app: {kind: postgres}
"""
_PRODUCT = """\
type: mesh_assets.orchestration.DataProduct
attributes:
  source: app
"""
_CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: shop.things
name: things
version: 1.0.0
status: active
domain: shop
team: {name: shop}
schema:
  - name: things
    physicalName: shop.things
    quality:
      - name: number_is_not_below
        type: sql
        query: SELECT count(*) FROM ${table} WHERE number < 0
        mustBe: 0
        severity: error
        description: Nothing counts less than nothing.
      - name: there_are_few
        type: library
        metric: rowCount
        mustBeLessThan: 1000
        severity: error
        description: The shop is small.
        customProperties: [{property: blocking, value: true}]
    properties:
      - {name: thing_id, logicalType: integer, physicalType: bigint, primaryKey: true}
      - {name: number, logicalType: integer, physicalType: integer}
      - {name: body, logicalType: string, physicalType: text}
  - name: notes
    physicalName: shop.notes
    properties:
      - {name: note_id, logicalType: integer, physicalType: bigint, primaryKey: true}
      - {name: words, logicalType: string, physicalType: text}
"""
_PEOPLE_CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: shop.people
name: people
version: 1.0.0
status: active
domain: shop
team: {name: shop}
schema:
  - name: people
    physicalName: shop.people
    properties:
      - {name: person_id, logicalType: integer, physicalType: bigint, primaryKey: true}
"""
_PEOPLE_SCHEMA = "create table shop.people (person_id bigint primary key)"
_SCHEMA = """\
create schema shop;
create table shop.things (thing_id bigint primary key, number int, body text);
alter table shop.things alter column body set storage external;
create table shop.notes (note_id bigint primary key, words text);
"""


class Shop:
    """The source, its products folder and its lake."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        folder = home / "products" / "shop" / "things"
        folder.mkdir(parents=True)
        (folder.parent / "defs.yaml").write_text(_DOMAIN)
        (folder / "defs.yaml").write_text(_PRODUCT)
        self.contract = folder / "contract.yaml"
        self.contract.write_text(_CONTRACT)
        self.settings = Settings(home=home, products=home / "products")
        address = self.settings.source_file("shop", "app")
        address.parent.mkdir(parents=True)
        address.write_text(url)
        self.execute(_SCHEMA)

    def add_people(self) -> None:
        """A second product of the same source."""
        folder = self.contract.parent.parent / "people"
        folder.mkdir()
        (folder / "defs.yaml").write_text(_PRODUCT)
        (folder / "contract.yaml").write_text(_PEOPLE_CONTRACT)
        self.execute(_PEOPLE_SCHEMA)

    @property
    def mesh(self) -> Mesh:
        """The product as its folder is now."""
        return Mesh(self.settings)

    @property
    def plan(self) -> CapturePlan:
        """What a shift that starts now has to do."""
        return self.mesh.plan("shop", "app")

    def execute(self, *statements: str) -> None:
        """Run statements at the source, each in its own transaction."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def edit(self, old: str, new: str) -> None:
        """Change the contract."""
        text = self.contract.read_text()
        assert old in text
        self.contract.write_text(text.replace(old, new))

    def drain(self, observer: Silent | None = None, budget: Budget = QUICK) -> ShiftResult:
        """One short shift."""
        return Shift(self.plan, budget=budget, observer=observer).run()

    def current(self) -> dict[int, tuple[Any, ...]]:
        """The product's rows as everybody reads them."""
        frame = self.mesh.open("shop.things").polars()
        return {row[0]: row[1:] for row in frame.select("thing_id", "number", "body").iter_rows()}

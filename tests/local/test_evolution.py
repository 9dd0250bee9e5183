"""Major versions rise in a running mesh; the old ones stay for their readers, and go after them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mesh_assets.contract import discover
from mesh_assets.contract.support import Support, support
from mesh_assets.errors import MeshError
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from tests.local.running import PROJECT, Running, processes_of
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKSPACE = """\
load_from:
  - python_module: {module_name: mesh_assets.code_locations, attribute: sales, location_name: sales}
  - python_module: {module_name: mesh_assets.code_locations, attribute: enterprise, location_name: enterprise}
"""
CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: sales.{name}
name: {name}
version: 1.0.0
status: active
domain: sales
description: {{purpose: A derived product.}}
team: {{name: sales-engineering, members: [{{username: lena@mesh.example, role: data owner}}]}}
schema:
  - name: {name}
    logicalType: object
    properties:
      - {{name: customer_id, logicalType: integer, physicalType: bigint, primaryKey: true}}
      - {{name: orders, logicalType: integer, physicalType: bigint}}
"""
TOTAL = '      - {name: total, logicalType: number, physicalType: "numeric(18,2)"}\n'
DEFINITION = """\
type: mesh_assets.orchestration.DataProduct
attributes:
  inputs:
    a: {{product: {of}{version}, key: {{customer_id: customer_id}}}}
"""
TRANSFORM = "import polars as pl\n\n\ndef transform(inputs):\n    return {}\n"
PER_CUSTOMER = "inputs['a'].group_by('customer_id').agg({})"
COUNT = "orders=pl.len().cast(pl.Int64)"
FILTERED = "inputs['a'].filter({}).select('customer_id', 'orders')"
SUM = "total=pl.col('amount').sum().cast(pl.Decimal(18, 2))"

RUNNING = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")

AMOUNT_V1 = "sales.orders_v1.orders.amount"
ORDERS = "SELECT order_id, customer_id, status FROM shop.orders"
ORDERS_V1 = "SELECT order_id, amount FROM shop.orders"
COUNTED = "SELECT customer_id, count(*) AS orders FROM shop.orders GROUP BY customer_id"
SPENT = "SELECT customer_id, count(*) AS orders, sum(amount) AS total FROM shop.orders GROUP BY customer_id"
UNKNOWN = f"SELECT *, NULL AS total FROM ({COUNTED}) AS counted"
LARGE = f"SELECT customer_id, orders FROM ({SPENT}) AS spent WHERE total > 1000"
SEVERAL = f"SELECT * FROM ({COUNTED}) AS counted WHERE orders > 1"


class Organisation:
    """The sample's orders, and three products in a chain and beside it that read what they promise.

    ``sales.spent`` reads the amounts of orders and names no version, ``sales.pinned`` names version 1,
    and ``sales.large`` reads the totals of ``sales.spent``.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.products = folder / "home", folder / "products"
        sales = self.products / "sales"
        ignored = shutil.ignore_patterns("customer_360", "customers", "__pycache__")
        shutil.copytree(PROJECT / "products" / "sales", sales, ignore=ignored)
        (folder / "workspace.yaml").write_text(WORKSPACE)
        summed = PER_CUSTOMER.format(f"{COUNT}, {SUM}")
        self._derived("spent", "sales.orders", summed, more=TOTAL)
        self._derived("pinned", "sales.orders", summed, version=", version: 1", more=TOTAL)
        self._derived("large", "sales.spent", FILTERED.format("pl.col('total') > 1000"))

    def _derived(self, name: str, of: str, expression: str, *, version: str = "", more: str = "") -> None:
        folder = self.products / "sales" / name
        folder.mkdir()
        (folder / "contract.yaml").write_text(CONTRACT.format(name=name) + more)
        (folder / "defs.yaml").write_text(DEFINITION.format(of=of, version=version))
        (folder / "transform.py").write_text(TRANSFORM.format(expression))

    def edit(self, path: str, *replacements: tuple[str, str]) -> None:
        """Write a file anew, at once."""
        file = self.products / "sales" / path
        text = file.read_text()
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        draft = file.with_name(f".{file.name}")
        draft.write_text(text)
        draft.rename(file)

    def take_amount_away(self) -> None:
        """Version 2 of orders promises no amount; its suite expects nothing of it any more."""
        suite = self.products / "sales" / "orders" / "expectations" / "orders.json"
        content = json.loads(suite.read_text())
        content["expectations"] = [
            one for one in content["expectations"] if one["kwargs"].get("column") != "amount"
        ]
        suite.write_text(json.dumps(content))
        text = (self.products / "sales" / "orders" / "contract.yaml").read_text()
        start = text.index("      - name: amount\n")
        amount = text[start : text.index("      - name: placed_at", start)]
        self.edit("orders/contract.yaml", (amount, ""), ("version: 1.0.0", "version: 2.0.0"))

    def order(self) -> None:
        """Place an order of the first customer, worth more than most."""
        self.sql(
            "INSERT INTO shop.orders "
            "(order_id, customer_id, status, currency, amount, placed_at, updated_at) "
            "SELECT max(order_id) + 1, (SELECT min(customer_id) FROM shop.customers), 'placed', 'EUR', 5000, "
            "now(), now() FROM shop.orders RETURNING order_id"
        )

    def sql(self, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Ask the source, as its application does; columns and rows."""
        url = (self.home / "sources" / "sales.app.url").read_text().strip()
        with psycopg.connect(url, autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return [column.name for column in done.description or ()], done.fetchall()

    def mesh(self) -> Mesh:
        """The mesh's products as they are now."""
        return Mesh(Settings(home=self.home, products=self.products))

    def holds(self, **expected: str) -> bool:
        """Whether products have just the rows that these queries of the source give."""
        mesh = self.mesh()
        try:
            for name, query in expected.items():
                names, rows = self.sql(query)
                table = name.removesuffix("_v1")
                if set(mesh.open(f"sales.{name}.{table}").polars().select(names).rows()) != set(rows):
                    return False
        except MeshError:
            # It has no version yet.
            return False
        return True

    def support(self, name: str) -> Support | None:
        """How an old version stands; None if it is not kept."""
        discovery = discover(self.products)
        product = discovery.products.get(ProductName("sales", name))
        return support(discovery, product) if product else None

    def reads(self, name: str) -> set[str]:
        """The products that the newest version of another one was made of."""
        mesh = self.mesh()
        version = mesh.latest_version(mesh.product(f"sales.{name}"))
        return set(version.parents) if version else set()


@pytest.fixture
def organisation() -> Iterator[Organisation]:
    # Not pytest's own temporary folder: it is private to root, and PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="mesh-evolution-"))
    folder.chmod(0o711)
    made = Organisation(folder)
    try:
        yield made
    finally:
        left = processes_of(made.home)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, "processes were left"


def test_old_versions_live_as_long_as_they_are_read(organisation: Organisation) -> None:
    # Without applications, what is in the source is known.
    more = {"MESH_PRODUCTS": str(organisation.products)}
    with Running(organisation.home, "--rate", "0", more=more) as mesh:
        mesh.wait_until_ready()
        until(
            lambda: organisation.holds(orders=ORDERS, spent=SPENT, pinned=SPENT, large=LARGE),
            "all products filled",
        )
        from_idle(mesh)
        a_captured_product_rises(mesh, organisation)
        a_derived_product_rises(mesh, organisation)
        the_readers_move(mesh, organisation)
        assert mesh.process.poll() is None
        for tag, value in (("mesh/shift", "sales.app"), ("mesh/derive", "sales")):
            assert mesh.runs(value, "FAILURE", tag=tag) == []


def from_idle(mesh: Running) -> None:
    """Materialize does its work itself where no shift runs."""

    def idle() -> bool:
        tags = (("mesh/shift", "sales.app"), ("mesh/derive", "sales"))
        return not any(mesh.runs(value, *RUNNING, tag=tag) for tag, value in tags)

    for location, key in (
        ("sales", "sales/orders/current/orders"),
        ("sales", "sales/spent/current/spent"),
        ("enterprise", "enterprise/catalog/datasets"),
    ):
        until(idle, "no shift")
        assert mesh.ended(mesh.launch(location, key)) == "SUCCESS"


def a_captured_product_rises(mesh: Running, organisation: Organisation) -> None:
    """Its old version is made of the new one, and its readers go on with that."""
    organisation.take_amount_away()
    # The source is idle: the new contract is reason enough.
    until(lambda: organisation.support("orders_v1") is not None, "an old version kept")
    organisation.order()
    until(
        lambda: organisation.holds(
            orders=ORDERS, orders_v1=ORDERS_V1, spent=SPENT, pinned=SPENT, large=LARGE
        ),
        "old and new version",
    )
    for name in ("spent", "pinned"):
        until(lambda name=name: organisation.reads(name) == {"sales.orders_v1"}, f"{name} of version 1")
    until(lambda: materialised(mesh, "sales/orders_v1/"), "version 1 in Dagster")
    told = {one["name"]: one for one in json.loads(mesh.command("products", "--json"))}
    assert told["sales.orders"]["contract_version"] == "2.0.0"
    assert told["sales.orders_v1"]["status"] == "deprecated"
    kept = told["sales.orders_v1"]["keeps"]
    assert (kept["product"], kept["version"]) == ("sales.orders", "1.0.0")
    assert kept["readers"] == ["sales.pinned", "sales.spent"]
    assert (kept["until"], kept["may_go"]) == (None, False)
    shown = json.loads(mesh.command("show", "sales.orders", "--json"))
    assert [one["version"] for one in shown["releases"]] == ["1.0.0", "2.0.0"]
    outcomes = json.loads(mesh.command("parity", "--json", "sales"))
    assert [one for one in outcomes if one["outcome"] != "equal"] == []
    assert json.loads(mesh.command("validate", "--json", "--offline"))["valid"]


def a_derived_product_rises(mesh: Running, organisation: Organisation) -> None:
    """Its old version is made by what made it, of the old version that that was made of."""
    organisation.edit("spent/transform.py", (f", {SUM}", ""))
    organisation.edit("spent/contract.yaml", (TOTAL, ""), ("version: 1.0.0", "version: 2.0.0"))
    organisation.order()
    until(
        lambda: organisation.holds(spent=COUNTED, spent_v1=SPENT, large=LARGE, pinned=SPENT, orders=ORDERS),
        "old and new version",
    )
    until(lambda: organisation.reads("large") == {"sales.spent_v1"}, "its reader of version 1")
    until(lambda: materialised(mesh, "sales/spent_v1/"), "version 1 in Dagster")
    assert organisation.reads("spent_v1") == {"sales.orders_v1"}
    assert organisation.reads("spent") == {"sales.orders"}
    until(
        lambda: reached(mesh, AMOUNT_V1) == {"sales.large", "sales.pinned", "sales.spent_v1"},
        "lineage by way of the old versions",
    )
    found = organisation.support("orders_v1")
    assert found is not None
    assert [str(name) for name in found.readers] == ["sales.pinned", "sales.spent_v1"]


def the_readers_move(mesh: Running, organisation: Organisation) -> None:
    """What nobody reads goes by itself or by hand, and nothing stops."""
    organisation.edit("large/transform.py", ("pl.col('total') > 1000", "pl.col('orders') > 1"))
    organisation.edit("pinned/transform.py", (SUM, "total=pl.lit(None, dtype=pl.Decimal(18, 2))"))
    organisation.edit("pinned/defs.yaml", ("version: 1", "version: 2"))
    # The mesh removes what it has made itself.
    until(lambda: organisation.support("spent_v1") is None, "the end of the old version that was derived")
    old = organisation.products / "sales" / "orders_v1"
    until(lambda: not old.exists() or told_to_go(mesh), "word that the other may go, too")
    shutil.rmtree(old, ignore_errors=True)
    organisation.order()
    until(
        lambda: organisation.holds(orders=ORDERS, spent=COUNTED, pinned=UNKNOWN, large=SEVERAL),
        "all products by themselves",
    )
    until(lambda: not known(mesh, "_v1/"), "no old version in Dagster")
    assert json.loads(mesh.command("validate", "--json", "--offline"))["valid"]
    status = json.loads(mesh.command("status", "--json"))
    assert status["broken"] == []
    assert {one["name"]: one["problem"] for one in status["products"]} == dict.fromkeys(
        ("sales.large", "sales.orders", "sales.pinned", "sales.spent")
    )
    # What it held is there.
    assert (organisation.home / "lake" / "sales" / "orders_v1" / "changes" / "orders").is_dir()


def materialised(mesh: Running, prefix: str) -> bool:
    """Whether Dagster has materialisations of all assets below a key."""
    counts = [count for key, count in mesh.materialised().items() if key.startswith(prefix)]
    return bool(counts) and all(counts)


def reached(mesh: Running, column: str) -> set[str]:
    """The products that a change of a column reaches."""
    return {one["product"] for one in json.loads(mesh.command("impact", column, "--json"))["affected"]}


def known(mesh: Running, part: str) -> list[str]:
    """The assets with such keys that a code location defines."""
    return [key for key in mesh.materialised() if part in key]


def told_to_go(mesh: Running) -> bool:
    """Whether ``mesh validate`` says that nobody reads version 1 of orders."""
    found = json.loads(mesh.command("validate", "--json", "--offline"))["findings"]
    return any("keeps version 1.0.0 of sales.orders: nobody reads it" in one["message"] for one in found)

"""An old version kept beside the new one: its files, who reads it, its end, and that it is made."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import psycopg
import pytest

from mesh_assets.contract import Discovery
from mesh_assets.contract.keeping import kept_files, kept_name
from mesh_assets.derive.shift import DeriveShift
from mesh_assets.errors import ContractError
from mesh_assets.ingest.shift import Shift
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget
from tests.contract.folder import Folder

QUICK = Budget(idle_seconds=0.1, batch_seconds=0.02, claim_seconds=60)
ORDERS = ProductName("sales", "orders")
KEPT = ProductName("sales", "orders_v1")
COLUMNS = """\
      - {name: amount, logicalType: number, physicalType: "numeric(12,2)"}
      - {name: tags, logicalType: array, physicalType: "text[]", items: {logicalType: string}}
slaProperties:
  - {property: endOfSupport, value: "2026-01-01"}
servers:
  - {server: lake, type: local, path: sales/orders, format: delta}
"""


@pytest.fixture
def products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / "products")
    folder.domain("sales")
    contract = folder.product("sales", "orders") / "contract.yaml"
    contract.write_text(contract.read_text() + COLUMNS)
    return folder


def keep(products: Folder, name: ProductName = ORDERS, until: date | None = None) -> Path:
    product = products.discover().product(name)
    kept = kept_name(product.contract)
    assert kept is not None
    folder = products.root / name.domain / kept.product
    folder.mkdir()
    for path, content in kept_files(product, until).items():
        (folder / path).write_bytes(content)
    return folder


def raise_version(products: Folder, *replacements: tuple[str, str]) -> None:
    contract = products.root / "sales" / "orders" / "contract.yaml"
    text = contract.read_text().replace("version: 1.0.0", "version: 2.0.0")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    contract.write_text(text)


def pinned(products: Folder, version: int) -> None:
    products.derived(
        "sales.overview",
        f"a: {{product: sales.orders, version: {version}, key: {{id: id}}}}",
        transform=(
            "import polars as pl\n\ndef transform(inputs):\n"
            "    return inputs['a'].select('id', note=pl.col('amount').cast(pl.String))\n"
        ),
    )


def reads(discovery: Discovery) -> ProductName:
    (one,) = discovery.product(ProductName("sales", "overview")).definition.inputs
    assert one.table == "orders"
    return one.product


def test_a_captured_product_is_kept_as_one_derived_from_it(products: Folder) -> None:
    keep(products, until=date(2999, 12, 31))
    discovery = products.discover()
    assert discovery.broken == ()
    kept, old = discovery.product(KEPT), discovery.product(ORDERS)
    assert (kept.contract.version, kept.contract.status) == ("1.0.0", "deprecated")
    assert (kept.contract.id, kept.contract.name) == ("sales.orders_v1", KEPT)
    assert [column.name for column in kept.contract.tables[0].columns] == ["id", "amount", "tags"]
    assert kept.contract.tables[0].key == old.contract.tables[0].key
    assert kept.contract.promise("endOfSupport").value == "2999-12-31"  # type: ignore[union-attr]
    assert kept.contract.servers[0]["path"] == "sales/orders_v1"
    (one,) = kept.definition.inputs
    assert (one.product, one.table, one.key) == (ORDERS, "orders", {"id": "id"})
    assert KEPT.keeps == (ORDERS, 1)
    assert ORDERS.keeps is None


def test_a_derived_product_is_kept_with_its_transform(products: Folder) -> None:
    folder = products.derived("sales.overview", "a: {product: sales.orders, key: {id: id}}")
    (folder / "expectations").mkdir()
    (folder / "expectations" / "overview.json").write_text("{}")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "transform.pyc").write_text("x")
    product = products.discover().product(ProductName("sales", "overview"))
    files = kept_files(product)
    assert sorted(files) == ["contract.yaml", "defs.yaml", "expectations/overview.json", "transform.py"]
    assert files["transform.py"] == (folder / "transform.py").read_bytes()
    assert files["defs.yaml"] == (folder / "defs.yaml").read_bytes()


def test_a_version_without_a_number_cannot_be_kept(products: Folder) -> None:
    contract = products.root / "sales" / "orders" / "contract.yaml"
    contract.write_text(contract.read_text().replace("version: 1.0.0", "version: first"))
    product = products.discover().product(ORDERS)
    assert kept_name(product.contract) is None
    with pytest.raises(ContractError, match=r"version 'first' of sales\.orders has no major number"):
        kept_files(product)


def test_whoever_pins_a_version_stays_with_it(products: Folder) -> None:
    pinned(products, 1)
    assert reads(products.discover()) == ORDERS
    keep(products, until=date(2999, 12, 31))
    assert reads(products.discover()) == ORDERS
    raise_version(products)
    discovery = products.discover()
    assert reads(discovery) == KEPT
    assert discovery.consumers(KEPT) == (ProductName("sales", "overview"),)
    assert discovery.consumers(ORDERS) == (KEPT,)
    assert [str(one.name) for one in discovery.derived()] == ["sales.orders_v1", "sales.overview"]


@pytest.mark.parametrize("version", [1, 3])
def test_a_version_that_is_not_kept_is_named_with_those_there_are(products: Folder, version: int) -> None:
    pinned(products, version)
    raise_version(products)
    with pytest.raises(ContractError) as caught:
        products.discover().product(ProductName("sales", "overview"))
    assert str(caught.value) == (
        f"products/sales/overview/defs.yaml:4: input 'a' reads version {version} of sales.orders, "
        "which is not kept\n  allowed: 2\n  hint: move to version 2, or ask its owner to keep the old one"
    )


def test_a_kept_version_is_the_one_that_its_name_says(products: Folder) -> None:
    contract = keep(products, until=date(2999, 12, 31)) / "contract.yaml"
    contract.write_text(contract.read_text().replace("version: 1.0.0", "version: 2.0.0"))
    with pytest.raises(
        ContractError, match=r"sales\.orders_v1 keeps version 1 of sales\.orders, but its own is"
    ):
        products.discover().product(KEPT)


def test_its_end_of_support_ends_it(products: Folder) -> None:
    pinned(products, 1)
    keep(products)
    raise_version(products)
    discovery = products.discover()
    assert [str(name) for name in discovery.products] == ["sales.orders"]
    with pytest.raises(ContractError) as caught:
        discovery.product(KEPT)
    assert "support of sales.orders_v1 ended on 2026-01-01: it is no longer made" in str(caught.value)
    with pytest.raises(ContractError, match=r"input 'a' reads sales\.orders_v1, which is broken itself"):
        discovery.product(ProductName("sales", "overview"))
    contract = products.root / "sales" / "orders_v1" / "contract.yaml"
    contract.write_text(contract.read_text().replace("'2026-01-01'", "soon"))
    with pytest.raises(ContractError, match="endOfSupport 'soon' is not a day"):
        products.discover().product(KEPT)


def test_the_old_output_stays_beside_the_new_one(
    products: Folder, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SOURCE_SALES_APP_URL", database_url)
    settings = Settings(home=tmp_path / "home", products=products.root)

    def run(*statements: str) -> Mesh:
        with psycopg.connect(database_url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())
        assert Shift(Mesh(settings).plan("sales", "app"), budget=QUICK).run().refused == {}
        assert DeriveShift(Mesh(settings).derive_plans("sales"), budget=QUICK).run().refused == {}
        return Mesh(settings)

    def rows(mesh: Mesh, name: str) -> list[tuple[object, ...]]:
        return mesh.open(name).polars().sort("id").rows()

    pinned(products, 1)
    mesh = run(
        "create schema shop",
        "create table shop.orders (id bigint primary key, amount numeric(12,2), tags text[])",
        "insert into shop.orders values (1, 1.50, '{a,b}'), (2, null, null)",
    )
    assert rows(mesh, "sales.overview") == [(1, "1.50"), (2, None)]
    keep(products, until=date(2999, 12, 31))
    # Version 2 promises other columns; the application has both for a while.
    raise_version(
        products,
        ("{name: amount, logicalType: number", "{name: total, logicalType: number"),
    )
    mesh = run(
        "alter table shop.orders add column total numeric(12,2)",
        "update shop.orders set amount = 2.50, total = 2.50 where id = 1",
        "insert into shop.orders values (3, 3.50, '{}', 3.50)",
    )
    assert mesh.open("sales.orders").polars().sort("id")["total"].to_list() == [
        Decimal("2.50"),
        None,
        Decimal("3.50"),
    ]
    kept = mesh.open("sales.orders_v1.orders").polars().sort("id")
    assert kept.schema == pl.Schema({"id": pl.Int64, "amount": pl.Decimal(12, 2), "tags": pl.List(pl.String)})
    assert kept.rows() == [(1, Decimal("2.50"), ["a", "b"]), (2, None, None), (3, Decimal("3.50"), [])]
    assert rows(mesh, "sales.overview") == [(1, "2.50"), (2, None), (3, "3.50")]
    # Its consumers move, and it goes.
    overview = products.root / "sales" / "overview"
    (overview / "defs.yaml").write_text(
        (overview / "defs.yaml").read_text().replace("version: 1", "version: 2")
    )
    (overview / "transform.py").write_text((overview / "transform.py").read_text().replace("amount", "total"))
    for path in (products.root / "sales" / "orders_v1").iterdir():
        path.unlink()
    (products.root / "sales" / "orders_v1").rmdir()
    mesh = run("update shop.orders set total = 9 where id = 2")
    assert reads(mesh.discovery) == ORDERS
    assert rows(mesh, "sales.overview") == [(1, "2.50"), (2, "9.00"), (3, "3.50")]

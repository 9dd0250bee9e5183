"""Discovery: every sound product is found, every broken one is named, and neither hides another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mesh_assets.contract import Discovery, discover
from mesh_assets.errors import ContractError, UnknownName
from mesh_assets.names import ProductName
from tests.contract.folder import Folder


@pytest.fixture
def products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / "products")
    folder.domain("sales", "app", "crm")
    folder.product("sales", "orders")
    return folder


def names(discovery: Discovery) -> list[str]:
    return [str(name) for name in discovery.products]


def only_error(discovery: Discovery) -> str:
    ((_, error),) = discovery.broken
    return str(error)


def test_products_are_found_and_grouped_by_source(products: Folder) -> None:
    products.domain("finance")
    products.product("finance", "accounts")
    products.product("sales", "customers")
    products.product("sales", "leads", source="crm")
    discovery = products.discover()
    assert discovery.broken == ()
    assert names(discovery) == ["finance.accounts", "sales.customers", "sales.leads", "sales.orders"]
    assert discovery.sources() == {
        ("finance", "app"): ("shop.accounts",),
        ("sales", "app"): ("shop.customers", "shop.orders"),
        ("sales", "crm"): ("shop.leads",),
    }
    publishers = discovery.publishers("sales", "app")
    assert {table: str(product.name) for table, (product, _) in publishers.items()} == {
        "shop.customers": "sales.customers",
        "shop.orders": "sales.orders",
    }


def test_a_broken_contract_hides_no_other_product(products: Folder) -> None:
    folder = products.product("sales", "customers")
    (folder / "contract.yaml").write_text("kind: DataContract\n  name: customers\n")
    discovery = products.discover()
    assert names(discovery) == ["sales.orders"]
    assert only_error(discovery).startswith("products/sales/customers/contract.yaml:2: not YAML")
    with pytest.raises(ContractError, match="not YAML"):
        discovery.product(ProductName("sales", "customers"))
    with pytest.raises(UnknownName, match=r"did you mean 'sales\.orders'"):
        discovery.product(ProductName("sales", "order"))
    assert discovery.product(ProductName("sales", "orders")).contract.version == "1.0.0"


def test_mistakes_of_both_files_are_shown_at_once(products: Folder) -> None:
    folder = products.product("sales", "customers", source="ap")
    (folder / "contract.yaml").write_text((folder / "contract.yaml").read_text().replace("bigint", "date"))
    error = only_error(products.discover())
    assert "products/sales/customers/contract.yaml:14: logicalType 'integer' does not fit" in error
    assert (
        "products/sales/customers/defs.yaml:3: domain 'sales' has no source 'ap'\n"
        "  allowed: app, crm\n"
        "  hint: did you mean 'app'?"
    ) in error


def test_missing_files_are_named(products: Folder) -> None:
    (products.product("sales", "customers") / "contract.yaml").unlink()
    (products.product("sales", "leads") / "defs.yaml").unlink()
    errors = {folder.name: str(error) for folder, error in products.discover().broken}
    assert errors["customers"].startswith("products/sales/customers/contract.yaml:1: the file is missing")
    assert errors["leads"].startswith("products/sales/leads/defs.yaml:1: the file is missing")


def test_a_broken_domain_names_the_products_that_wait_for_it(products: Folder) -> None:
    products.domain("finance")
    products.product("finance", "accounts")
    (products.root / "sales" / "defs.yaml").write_text("type: mesh_assets.orchestration.Domain\n")
    discovery = products.discover()
    assert names(discovery) == ["finance.accounts"]
    assert "these products are not available: orders" in only_error(discovery)
    with pytest.raises(ContractError, match="needs the field 'attributes'"):
        discovery.product(ProductName("sales", "orders"))


def test_a_source_table_has_one_publisher(products: Folder) -> None:
    products.product("sales", "returns", table="shop.orders")
    discovery = products.discover()
    assert names(discovery) == ["sales.orders"]
    assert only_error(discovery) == (
        "products/sales/returns/contract.yaml:10: source table shop.orders is already published by "
        "sales.orders (products/sales/orders/contract.yaml)\n"
        "  hint: a source table belongs to one product; remove it from one of the two"
    )


def test_the_same_table_of_another_source_is_another_table(products: Folder) -> None:
    products.product("sales", "returns", table="shop.orders", source="crm")
    assert names(products.discover()) == ["sales.orders", "sales.returns"]


def test_a_contract_id_is_given_once(products: Folder) -> None:
    folder = products.product("sales", "returns")
    text = (folder / "contract.yaml").read_text()
    (folder / "contract.yaml").write_text(text.replace("id: sales.returns", "id: sales.orders"))
    assert "id 'sales.orders' is already that of sales.orders" in only_error(products.discover())


def test_a_captured_table_needs_its_name_at_the_source(products: Folder) -> None:
    products.product("sales", "returns", table="returns")
    assert "contract.yaml:10: table 'returns' does not say which table of the source it is" in only_error(
        products.discover()
    )


def test_a_folder_name_must_be_a_name(products: Folder) -> None:
    products.product("sales", "Returns")
    assert "cannot name a product" in only_error(products.discover())


def test_empty_hidden_and_private_folders_are_passed_over(products: Folder) -> None:
    (products.root / "sales" / "drafts").mkdir()
    for name in (".git", "__pycache__", "_notes"):
        (products.root / name).mkdir()
        (products.root / name / "file").write_text("x")
    discovery = products.discover()
    assert names(discovery) == ["sales.orders"]
    assert discovery.broken == ()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="there is no products folder"):
        discover(tmp_path / "products")


def test_discovery_loads_neither_dagster_nor_delta() -> None:
    code = (
        "import sys; from mesh_assets.contract import discover; discover('products');"
        "print([name for name in ('dagster', 'deltalake', 'polars', 'pyarrow') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Derived products: what they subscribe to exists, fits, and never leads back to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_assets.contract import Discovery, InputDefinition, Limits, Through
from mesh_assets.errors import ContractError, UnknownName
from mesh_assets.names import ProductName
from tests.contract.folder import Folder

LINES = """\
  - name: lines
    physicalName: shop.lines
    properties:
      - {name: order, logicalType: integer, physicalType: bigint, primaryKey: true, primaryKeyPosition: 1}
      - {name: number, logicalType: integer, physicalType: integer, primaryKey: true, primaryKeyPosition: 2}
"""


@pytest.fixture
def products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / "products")
    folder.domain("sales")
    folder.domain("finance")
    orders = folder.product("sales", "orders") / "contract.yaml"
    orders.write_text(orders.read_text() + LINES)
    folder.product("finance", "payments")
    return folder


def error(discovery: Discovery, product: str = "sales.overview") -> str:
    with pytest.raises(ContractError) as caught:
        discovery.product(ProductName.parse(product))
    return str(caught.value)


def refusal(products: Folder, inputs: str, **more: str) -> str:
    """What is said of ``sales.overview`` with these inputs; the others must not be touched by it."""
    folder = products.derived("sales.overview", inputs, **more)  # type: ignore[arg-type]
    discovery = products.discover()
    assert [str(name) for name in discovery.products] == ["finance.payments", "sales.orders"]
    assert [path for path, _ in discovery.broken] == [folder]
    return error(discovery)


def test_a_derived_product(products: Folder) -> None:
    folder = products.derived(
        "sales.overview",
        """
        a: {product: sales.orders, key: {id: id}}
        lines:
          product: sales.orders
          table: lines
          through: {input: a, by: {order: id}}
        rates: {product: finance.payments}
        """,
        more="  limits: {max_seconds: 2.5, max_memory_mb: 64}\n",
    )
    discovery = products.discover()
    product = discovery.product(ProductName("sales", "overview"))
    orders = ProductName("sales", "orders")
    assert product.derived
    assert product.definition.inputs == (
        InputDefinition("a", orders, "orders", {"id": "id"}),
        InputDefinition("lines", orders, "lines", None, Through("a", {"order": "id"})),
        InputDefinition("rates", ProductName("finance", "payments"), "payments"),
    )
    assert [one.keyed for one in product.definition.inputs] == [True, True, False]
    assert [one.line for one in product.definition.inputs] == [4, 5, 9]
    assert product.definition.transform == folder / "transform.py"
    assert product.definition.limits == Limits(2.5, 64 << 20)
    assert product.contract.tables[0].physical_name == "overview"
    with pytest.raises(UnknownName, match=r"sales\.overview is derived: it has no source"):
        product.definition.captured_source()
    with pytest.raises(UnknownName, match=r"there is no input of sales\.overview 'rate'"):
        product.definition.input("rate")


def test_what_is_captured_is_told_from_what_is_derived(products: Folder) -> None:
    products.derived("sales.overview", "a: {product: sales.orders, key: {id: id}}")
    products.derived("finance.totals", "a: {product: sales.overview, key: {id: id}}")
    products.derived("finance.all", "a: {product: finance.totals}\nb: {product: sales.orders, table: lines}")
    discovery = products.discover()
    assert discovery.broken == ()
    assert discovery.sources() == {
        ("finance", "app"): ("shop.payments",),
        ("sales", "app"): ("shop.lines", "shop.orders"),
    }
    assert [str(one.name) for one in discovery.derived()] == [
        "sales.overview",
        "finance.totals",
        "finance.all",
    ]
    assert [str(one.name) for one in discovery.derived("finance")] == ["finance.totals", "finance.all"]
    orders = ProductName("sales", "orders")
    assert [str(name) for name in discovery.consumers(orders)] == ["finance.all", "sales.overview"]
    assert discovery.consumers(ProductName("finance", "all")) == ()
    assert discovery.reads(orders) == {
        "lines": {ProductName("finance", "all")},
        "orders": {ProductName("sales", "overview")},
    }


def test_its_code_is_known_by_transform_and_inputs(products: Folder) -> None:
    name = ProductName("sales", "overview")
    folder = products.derived("sales.overview", "a: {product: sales.orders, key: {id: id}}")
    first = products.discover().product(name)
    (folder / "defs.yaml").write_text((folder / "defs.yaml").read_text().replace(", key: {id: id}", ""))
    second = products.discover().product(name)
    assert first.transform_hash == second.transform_hash
    code = {first.code_hash, second.code_hash}
    assert len(code) == 2
    with (folder / "transform.py").open("a") as file:
        file.write("# another line\n")
    assert second.transform_hash != first.transform_hash or second.code_hash not in code
    captured = products.discover().product(ProductName("sales", "orders"))
    assert (captured.transform_hash, captured.code_hash) == ("", "")
    (folder / "transform.py").unlink()
    with pytest.raises(ContractError, match=r"transform\.py cannot be read: No such file"):
        _ = second.code_hash


def test_an_unknown_product_is_named_with_what_there_is(products: Folder) -> None:
    assert refusal(products, "a:\n  product: sales.order") == (
        "products/sales/overview/defs.yaml:5: input 'a' reads sales.order, which does not exist\n"
        "  allowed: finance.payments, sales.orders\n"
        "  hint: did you mean 'sales.orders'?"
    )


def test_an_unknown_table_is_named_with_what_there_is(products: Folder) -> None:
    assert refusal(products, "a:\n  product: sales.orders\n  table: line") == (
        "products/sales/overview/defs.yaml:6: input 'a': sales.orders has no table 'line'\n"
        "  allowed: orders, lines\n"
        "  hint: did you mean 'lines'?"
    )


def test_a_table_has_to_be_named_where_none_is_the_default(products: Folder) -> None:
    contract = products.root / "sales" / "orders" / "contract.yaml"
    contract.write_text(contract.read_text().replace("  - name: orders", "  - name: heads"))
    assert refusal(products, "a: {product: sales.orders}") == (
        "products/sales/overview/defs.yaml:4: input 'a': sales.orders has several tables and no default one\n"
        "  allowed: heads, lines\n"
        "  hint: add table: <name>"
    )


def test_unknown_columns_of_key_paths_are_named_with_what_there_is(products: Folder) -> None:
    assert refusal(
        products,
        """
        a:
          product: sales.orders
          key:
            id: idd
            note: id
        b:
          product: sales.orders
          table: lines
          through: {input: a, by: {orders: idd}}
        """,
    ) == (
        "products/sales/overview/defs.yaml:7: table 'orders' of input 'a' has no column 'idd'\n"
        "  allowed: id\n"
        "  hint: did you mean 'id'?\n"
        "products/sales/overview/defs.yaml:8: a key path leads to columns of the output's primary key, "
        "and 'note' is not in that of 'overview'\n"
        "  allowed: id\n"
        "  hint: the contract marks those columns with primaryKey: true\n"
        "products/sales/overview/defs.yaml:8: columns that a key path holds to be equal are of one type, "
        "but overview.note is text and orders.id is bigint\n"
        "products/sales/overview/defs.yaml:12: table 'lines' of input 'b' has no column 'orders'\n"
        "  allowed: order, number\n"
        "  hint: did you mean 'order'?\n"
        "products/sales/overview/defs.yaml:12: table 'orders' of input 'a' has no column 'idd'\n"
        "  allowed: id\n"
        "  hint: did you mean 'id'?"
    )


def test_equal_columns_are_of_one_type(products: Folder) -> None:
    message = refusal(products, "a: {product: sales.orders, table: lines, key: {id: number}}")
    assert "overview.id is bigint and lines.number is integer" in message


def test_all_key_paths_lead_to_the_same_columns(products: Folder) -> None:
    products.derived(
        "sales.overview",
        "a: {product: sales.orders, key: {id: id}}\nb: {product: finance.payments, key: {day: id}}",
        key=("id", "day"),
    )
    assert error(products.discover()) == (
        "products/sales/overview/defs.yaml:5: input 'b' has the key path day, but 'a' has id\n"
        "  hint: all key paths of a product lead to the same columns of its output"
    )


def test_a_circle_is_named_and_stops_only_those_in_it_and_behind_it(products: Folder) -> None:
    products.derived("sales.first", "a: {product: sales.second}")
    products.derived("sales.second", "a: {product: sales.orders}\nb: {product: finance.third}")
    products.derived("finance.third", "a: {product: sales.first}")
    products.derived("finance.behind", "a: {product: finance.third}")
    products.derived("finance.far_behind", "a: {product: finance.behind}")
    products.derived("finance.apart", "a: {product: sales.orders}")
    products.derived("sales.itself", "a: {product: sales.itself}")
    discovery = products.discover()
    assert [str(name) for name in discovery.products] == [
        "finance.apart",
        "finance.payments",
        "sales.orders",
    ]
    assert error(discovery, "sales.second") == (
        "products/sales/second/defs.yaml:5: circular subscription: "
        "sales.second <- finance.third <- sales.first <- sales.second\n"
        "  hint: a product cannot be made of itself, not even by way of others: take one of these inputs out"
    )
    assert "sales.itself <- sales.itself" in error(discovery, "sales.itself")
    assert error(discovery, "finance.behind") == (
        "products/finance/behind/defs.yaml:4: input 'a' reads finance.third, which is broken itself\n"
        "  hint: mend finance.third first"
    )
    assert "reads finance.behind, which is broken itself" in error(discovery, "finance.far_behind")


@pytest.mark.parametrize("broken", ["sales/orders/contract.yaml", "sales/defs.yaml"])
def test_what_a_broken_product_feeds_waits_for_it(products: Folder, broken: str) -> None:
    products.derived("finance.totals", "a: {product: sales.orders}")
    products.derived("finance.apart", "a: {product: finance.payments}")
    (products.root / broken).write_text("kind: nothing\n")
    discovery = products.discover()
    assert [str(name) for name in discovery.products] == ["finance.apart", "finance.payments"]
    assert "input 'a' reads sales.orders, which is broken itself" in error(discovery, "finance.totals")


def test_a_transform_is_there_and_is_python_with_the_function(products: Folder) -> None:
    inputs = "a: {product: sales.orders}"
    folder = products.derived("sales.overview", inputs, transform=None)
    assert error(products.discover()) == (
        "products/sales/overview/defs.yaml:3: products/sales/overview/transform.py is missing\n"
        "  hint: create it with a function transform(inputs)"
    )
    (folder / "transform.py").write_text("import polars\n\ndef transform(inputs)\n    return None\n")
    assert "products/sales/overview/transform.py:3: not Python: expected ':'" in error(products.discover())
    (folder / "transform.py").write_text("def derive(inputs):\n    return None\n")
    assert "products/sales/overview/transform.py defines no function 'transform'" in error(
        products.discover()
    )
    with (folder / "defs.yaml").open("a") as file:
        file.write("  transform: ../transform.py\n")
    assert error(products.discover()) == (
        "products/sales/overview/defs.yaml:5: ../transform.py lies outside of the product's folder\n"
        "  hint: keep it in there"
    )


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        (
            "a: {product: orders}",
            "",
            "defs.yaml:4: 'orders' is not a product name\n  hint: write domain.product",
        ),
        ("a: {table: orders}", "", "defs.yaml:4: an input needs the field 'product'"),
        ("a: {product: sales.orders, keys: {}}", "", "defs.yaml:4: an input has no field 'keys'"),
        ("a: {product: sales.orders, key: {}}", "", "defs.yaml:4: 'key' names no column"),
        ("a: {product: sales.orders, key: {id: 7}}", "", "'id' must be text, not the number 7"),
        ("A b: {product: sales.orders}", "", "defs.yaml:4: 'A b' cannot name an input"),
        (
            "a: {product: sales.orders, key: {id: id}, through: {input: b, by: {id: id}}}\n"
            "b: {product: finance.payments, key: {id: id}}",
            "",
            "defs.yaml:4: input 'a' has two key paths",
        ),
        (
            "a: {product: sales.orders, through: {input: bb, by: {id: id}}}\nb: {product: finance.payments}",
            "",
            "defs.yaml:4: there is no input 'bb'\n  allowed: a, b\n  hint: did you mean 'b'?",
        ),
        (
            "a: {product: sales.orders, through: {input: b, by: {id: id}}}\nb: {product: finance.payments}",
            "",
            "defs.yaml:4: input 'b' has no key path, so none leads through it",
        ),
        (
            "a: {product: sales.orders, through: {input: b, by: {id: id}}}\n"
            "b: {product: finance.payments, through: {input: a, by: {id: id}}}",
            "",
            "defs.yaml:4: the key path goes in a circle: a -> b -> a",
        ),
        ("a: {product: sales.orders}", "  source: app\n", "defs.yaml:3: a product has a source or inputs"),
        (
            "a: {product: sales.orders}",
            "  limits: {max_seconds: 0}\n",
            "defs.yaml:5: max_seconds must be more than 0, not 0",
        ),
        (
            "a: {product: sales.orders}",
            "  limits: {max_memory: 5}\n",
            "defs.yaml:5: a set of limits has no field 'max_memory'\n  allowed: max_memory_mb, max_seconds",
        ),
    ],
)
def test_mistakes_of_the_definition_have_their_line(
    products: Folder, inputs: str, more: str, message: str
) -> None:
    assert message in refusal(products, inputs, more=more)


def test_a_product_needs_a_source_or_inputs(products: Folder) -> None:
    folder = products.product("sales", "leads")
    start = "type: mesh_assets.orchestration.DataProduct\nattributes:\n"
    (folder / "defs.yaml").write_text(start + "  transform: transform.py\n")
    message = error(products.discover(), "sales.leads")
    assert "defs.yaml:2: a product needs a source or inputs\n  hint: write source: <name>, or" in message
    assert "defs.yaml:3: 'transform' is for derived products, which have inputs" in message
    (folder / "defs.yaml").write_text(start + "  inputs: {}\n")
    message = error(products.discover(), "sales.leads")
    assert "defs.yaml:3: a derived product needs at least one input" in message


def test_columns_of_a_derived_product_say_how_they_are_stored(products: Folder) -> None:
    folder = products.derived("sales.overview", "a: {product: sales.orders}")
    contract = folder / "contract.yaml"
    contract.write_text(
        contract.read_text().replace("logicalType: string, physicalType: text", "logicalType: number")
    )
    assert (
        "products/sales/overview/contract.yaml:13: column 'note' of 'overview' does not say how it is stored"
        in error(products.discover())
    )

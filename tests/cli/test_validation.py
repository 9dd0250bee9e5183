"""``mesh validate``: what a changed contract breaks for whom, before it lands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from mesh_assets.catalog.releases import Releases
from mesh_assets.contract import load
from mesh_assets.names import Layout, ProductName
from mesh_assets.settings import Settings
from tests.cli.conftest import Organisation

PROJECT = Path(__file__).resolve().parents[2]
ORDERS = ProductName("sales", "orders")
AMOUNT = "      - name: amount\n"
Run = Callable[..., Result]


@pytest.fixture
def products(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the products, to change."""
    folder = tmp_path / "products"
    shutil.copytree(PROJECT / "products", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("MESH_PRODUCTS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def change(contract: Path, *replacements: tuple[str, str]) -> None:
    text = contract.read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    contract.write_text(text)


def without_amount(contract: Path) -> None:
    """Take the column ``amount`` out of sales.orders, and what its suite expects of that."""
    before, _, rest = contract.read_text().partition(AMOUNT)
    contract.write_text(before + rest[rest.index("      - name: placed_at") :])
    suite = contract.parent / "expectations" / "orders.json"
    content = json.loads(suite.read_text())
    content["expectations"] = [
        one for one in content["expectations"] if one["kwargs"].get("column") != "amount"
    ]
    suite.write_text(json.dumps(content))


def release(contract: Path) -> None:
    Releases(Layout(Settings().lake_root).catalog(ORDERS)).record(load(contract))


def findings(mesh: Run, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(mesh("validate", "--json", *arguments).stdout)["findings"]
    return found


def test_a_broken_promise_is_refused_and_names_whom_it_breaks(mesh: Run, products: Path) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    release(contract)
    assert mesh("validate", "products/sales/orders", "--offline").stdout == "1 checked: no mistake\n"
    without_amount(contract)
    line = next(
        number
        for number, text in enumerate(contract.read_text().splitlines(), start=1)
        if text == "  - name: orders"
    )
    result = mesh("validate", "products/sales/orders", "--offline")
    assert result.exit_code == 1
    assert (
        f"products/sales/orders/contract.yaml:{line}: breaks a promise: orders: column 'amount' was removed; "
        "read by finance.revenue, sales.customer_360"
    ) in result.stdout
    assert "write version: 2.0.0 and leave consumers the old one" in result.stdout
    # Those who read it are told at their own place, too.
    told = mesh("validate", "products/finance", "--offline").stdout
    assert "products/finance/revenue/transform.py: the transform cannot be used: " in told
    assert "amount" in told


def test_a_raised_major_version_may_break_and_the_old_one_stays(mesh: Run, products: Path) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    shutil.copytree(products, products.parent / "other")
    release(contract)
    without_amount(contract)
    change(contract, ("version: 1.0.0", "version: 2.0.0"))
    result = mesh("validate", "products/sales/orders", "--offline")
    assert result.exit_code == 0, result.output
    assert (
        "note: products/sales/orders/contract.yaml: version 1 of sales.orders stays beside the new one as "
        "sales.orders_v1, for finance.revenue, sales.customer_360, until they have moved"
    ) in result.stdout
    # Its readers are told, and need not do anything.
    result = mesh("validate", "--offline")
    assert result.exit_code == 0, result.output
    for reader in ("finance/revenue", "sales/customer_360"):
        assert (
            f"products/{reader}/transform.py: reads sales.orders_v1 until it is written anew" in result.stdout
        )
    # A team that wants to edit it, or to deliver it itself, writes its folder.
    kept = mesh("keep", "sales.orders", "--from", "other", "--until", "2999-12-31")
    assert kept.stdout == (
        "products/sales/orders_v1: contract.yaml, defs.yaml, expectations/orders.json, kept.json, "
        "transform.py\n"
        "read until they are written anew by finance.revenue, sales.customer_360\n"
    )
    assert mesh("keep", "sales.orders", "--from", "other").exit_code == 1
    result = mesh("validate", "--offline")
    assert result.exit_code == 0, result.output
    assert "note: products/sales/orders/contract.yaml:" in result.stdout
    assert "breaks what 1.0.0 promised: orders: column 'amount' was removed" in result.stdout
    assert "until it is written anew" not in result.stdout
    (told,) = [one["keeps"] for one in json.loads(mesh("products", "--json").stdout) if one["keeps"]]
    assert told == {
        "product": "sales.orders",
        "version": "1.0.0",
        "readers": ["finance.revenue", "sales.customer_360"],
        "until": "2999-12-31",
        "may_go": False,
        "removed_by_mesh": False,
        "folder": str(products / "sales" / "orders_v1"),
    }
    text = "version 1.0.0 of sales.orders, for finance.revenue, sales.customer_360, until 2999-12-31"
    assert text in mesh("show", "sales.orders_v1").stdout
    # Written anew, they stay by saying so, and else they move.
    for name in ("finance/revenue", "sales/customer_360"):
        change(products / name / "defs.yaml", ("sales.orders\n", "sales.orders\n      version: 1\n"))
    assert mesh("validate", "products/finance/revenue", "--offline").exit_code == 0
    for name in ("finance/revenue", "sales/customer_360"):
        change(products / name / "defs.yaml", ("version: 1", "version: 2"))
    change(
        products / "sales" / "customer_360" / "defs.yaml",
        ("table: order_lines", "version: 2\n      table: order_lines"),
    )
    result = mesh("validate", "--offline")
    assert result.exit_code == 1
    assert "products/finance/revenue/transform.py: the transform cannot be used: " in result.stdout
    goes = "nobody reads it any more: remove products/sales/orders_v1; what it held stays in the lake"
    assert (
        f"products/sales/orders_v1/contract.yaml: keeps version 1.0.0 of sales.orders: {goes}"
        in result.stdout
    )
    assert f"sales.orders_v1 keeps version 1.0.0 of sales.orders: {goes}" in mesh("products").stdout


def test_who_names_a_version_is_told_that_it_will_be_kept(mesh: Run, products: Path) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    definition = products / "finance" / "revenue" / "defs.yaml"
    change(definition, ("sales.orders\n", "sales.orders\n      version: 1\n"))
    release(contract)
    without_amount(contract)
    change(contract, ("version: 1.0.0", "version: 2.0.0"))
    result = mesh("validate", "--offline")
    assert result.exit_code == 0, result.output
    assert (
        "note: products/finance/revenue: reads sales.orders_v1, which is kept as soon as sales.orders "
        "2.0.0 is released"
    ) in result.stdout
    # There never was a version 3.
    change(definition, ("version: 1", "version: 3"))
    result = mesh("validate", "--offline")
    assert result.exit_code == 1
    assert "reads version 3 of sales.orders, which is not kept" in result.stdout


def test_a_rule_about_a_column_that_is_gone_is_a_mistake(mesh: Run, products: Path) -> None:
    suite = products / "sales" / "orders" / "expectations" / "orders.json"
    change(suite, ('"column": "amount"', '"column": "total"'))
    result = mesh("validate", "products/sales/orders", "--offline")
    assert result.exit_code == 1
    assert "expectations/orders.json:28: table orders has no column 'total'" in result.stdout


def test_an_old_version_that_cannot_stay_is_a_mistake(mesh: Run, products: Path) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    release(contract)
    content = contract.read_text()
    lines = content[content.index("  - name: order_lines") :]
    end = re.search(r"^(?=\w)", lines, re.MULTILINE)
    change(contract, (lines[: end.start() if end else None], ""), ("version: 1.0.0", "version: 2.0.0"))
    result = mesh("validate", "products/sales/orders", "--offline")
    assert result.exit_code == 1
    assert (
        "version 1.0.0 of sales.orders promises order_lines, which version 2.0.0 captures no more, so it "
        "cannot be made of that; it is read by "
    ) in result.stdout
    assert "hint: let the new version have the table as well until nobody reads the old one" in result.stdout


def test_a_compatible_change_raises_the_minor_version(mesh: Run, products: Path) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    release(contract)
    change(contract, ("numeric(14,2)", "numeric(16,2)"))
    result = mesh("validate", "products/sales/orders", "--offline")
    assert result.exit_code == 1
    assert "contract.yaml:1: version 1.0.0 of sales.orders already stands for other content" in result.stdout
    assert "hint: write version: 1.1.0" in result.stdout
    change(contract, ("version: 1.0.0", "version: 1.1.0"))
    (found,) = findings(mesh, "products/sales/orders", "--offline")
    assert found["severity"] == "note"
    assert "changed since 1.0.0: orders: column 'amount': numeric(14,2) became num" in found["message"]


def test_against_another_folder(mesh: Run, products: Path) -> None:
    shutil.copytree(products, products.parent / "other")
    without_amount(products / "sales" / "orders" / "contract.yaml")
    arguments = ("validate", "products/sales/orders", "--offline", "--against")
    result = mesh(*arguments, "other")
    assert result.exit_code == 1
    assert "column 'amount' was removed; read by finance.revenue, sales.customer_360" in result.stdout
    assert mesh(*arguments, "products").exit_code == 0


def test_against_a_git_revision(mesh: Run, products: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=products.parent, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    git("add", "products")
    git("commit", "--message=Products")
    without_amount(products / "sales" / "orders" / "contract.yaml")
    git("commit", "--all", "--message=Less")
    arguments = ("validate", "products/sales/orders", "--offline", "--against")
    assert mesh(*arguments, "main").exit_code == 0
    result = mesh(*arguments, "main~1")
    assert result.exit_code == 1
    assert "column 'amount' was removed; read by finance.revenue, sales.customer_360" in result.stdout
    unknown = mesh(*arguments, "mian")
    assert unknown.exit_code == 1
    assert "'mian' is neither a folder nor a git revision of products: " in unknown.stderr
    option = mesh(*arguments, "--output=stolen")
    assert option.exit_code == 1
    assert not list(products.rglob("stolen"))


def test_a_damaged_release_is_a_note(mesh: Run, products: Path) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    release(contract)
    file = Path(Layout(Settings().lake_root).catalog(ORDERS, "contracts", "1.0.0.json"))
    file.write_text("{}")
    (found,) = findings(mesh, "products/sales/orders", "--offline")
    assert found["severity"] == "note"
    assert "not compared with what was released: " in found["message"]


def test_a_transform_is_held_against_its_contract(mesh: Run, products: Path) -> None:
    folder = products / "distribution" / "late_shipments"
    change(folder / "transform.py", ("days_late=", "delay="), ('            "carrier",\n', ""))
    change(folder / "contract.yaml", ("physicalType: date", "physicalType: timestamptz"))
    change(folder / "contract.yaml", ("logicalType: date", "logicalType: timestamp"))
    mistakes = {
        (one["severity"], one["message"]) for one in findings(mesh, "products/distribution", "--offline")
    }
    assert mistakes == {
        ("mistake", "the transform makes no column 'carrier' of 'late_shipments'"),
        ("mistake", "the transform makes no column 'days_late' of 'late_shipments'"),
        ("mistake", "the transform makes column 'delay' of 'late_shipments', which nobody promised"),
        (
            "note",
            "column 'promised_on' is timestamptz and comes from the transform as Date, "
            "not Datetime(time_unit='us', time_zone='UTC')",
        ),
    }
    (folder / "transform.py").write_text("def transform(inputs):\n    return {'late': inputs['orders']}\n")
    told = {one["message"] for one in findings(mesh, "products/distribution/late_shipments", "--offline")}
    assert told == {
        "the transform makes no table 'late_shipments', but late",
        "the transform makes table 'late', which nobody promised",
    }


def test_a_migration_at_the_source_names_who_reads_the_column(
    captured: Organisation, home: Path, mesh: Run
) -> None:
    captured.execute("sales", "alter table shop.orders rename column promised_on to due_on")
    try:
        result = mesh("validate", "products/sales/orders")
        assert result.exit_code == 1
        assert (
            "column 'promised_on' of the contract is not in shop.orders; read by distribution.late_shipments"
        ) in result.stdout
    finally:
        captured.execute("sales", "alter table shop.orders rename column due_on to promised_on")

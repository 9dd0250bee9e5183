"""The commands where nothing was captured, and how they look, complete and fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import Result

from mesh_assets.cli import completion
from mesh_assets.cli.app import app
from mesh_assets.contract.discovery import discover
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import CapturePlan, capture_plan

Run = Callable[..., Result]
PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("up", "down", "reset", "shift", "status", "products", "show", "sql", "changes", "version"),
    *("lineage", "impact", "search"),
    *("check", "parity", "rebuild", "validate", "keep", "quarantine"),
)
HEAVY = ("dagster", "deltalake", "polars", "pyarrow", "duckdb", "pydantic", "psycopg", "numba", "yaml")


def test_every_command_has_help_with_an_example(mesh: Run) -> None:
    listed: Any = get_command(app)
    assert sorted(listed.commands) == sorted(COMMANDS)
    for name in COMMANDS:
        result = mesh(name, "--help")
        assert result.exit_code == 0
        assert "Examples:" in result.stdout
        assert f"mesh {name}" in result.stdout.split("Examples:")[1]
        if name != "up":
            assert "--json" in result.stdout


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, json, contextlib, io\n"
        "from mesh_assets.cli.app import app\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): app(['--help'])\n"
        f"sys.stdout.write(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_usage_mistakes_end_with_2(mesh: Run) -> None:
    for arguments in (
        ["prodcuts"],
        ["show"],
        ["changes", "sales.orders"],
        ["sql", "select 1", "--version", "0"],
        ["sql", "select 1", "--format", "xml"],
        ["sql", "select 1", "--format", "csv", "--json"],
        ["up", "--rate", "-1"],
    ):
        assert mesh(*arguments).exit_code == 2, arguments
    assert "products" in mesh("prodcuts").stderr


def test_names_that_do_not_exist_suggest_the_nearest(mesh: Run, empty_home: Path) -> None:
    for name, hint in (
        ("sales.order", "sales.orders"),
        ("orders", "sales.orders"),
        ("Sales.orders", "domain.product"),
    ):
        result = mesh("show", name)
        assert result.exit_code == 1
        assert hint in result.stderr


def test_what_was_not_captured_says_how_to_begin(mesh: Run, empty_home: Path) -> None:
    for arguments in (
        ["sql", "from sales.orders"],
        ["changes", "sales.orders", "--key", "1"],
        ["shift", "sales"],
        ["parity", "sales.customers"],
    ):
        result = mesh(*arguments)
        assert result.exit_code == 1, arguments
        assert "Traceback" not in result.output
        if arguments[0] == "sql":
            assert "mesh up" in result.stderr
    status = mesh("status")
    assert status.exit_code == 0
    assert "nothing captured yet" in status.stdout
    assert "is not known" in status.stdout
    found = json.loads(mesh("status", "--json").stdout)
    assert all(one["state"] == "unreachable" for one in found["sources"])
    assert json.loads(mesh("show", "sales.orders", "--json").stdout)["version"] is None
    assert mesh("products").exit_code == 0


def test_a_statement_without_products(mesh: Run, empty_home: Path) -> None:
    assert json.loads(mesh("sql", "select 1.5::double as x, 'nan'::float as y", "--json").stdout) == [
        {"x": 1.5, "y": "nan"}
    ]


def test_down_and_reset_without_a_mesh(mesh: Run, empty_home: Path) -> None:
    result = mesh("down")
    assert result.exit_code == 1
    assert "is not up" in result.stderr
    assert mesh("reset", "--yes").exit_code == 0
    (empty_home / "lake").mkdir(parents=True)
    refused = mesh("reset", input="n\n")
    assert refused.exit_code == 1
    assert (empty_home / "lake").exists()
    assert json.loads(mesh("reset", "--yes", "--json").stdout)["removed"] is True
    assert not (empty_home / "lake").exists()


def test_a_wrong_setting_is_a_sentence(mesh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_PORT", "many")
    result = mesh("products")
    assert result.exit_code == 1
    assert "MESH_PORT" in result.stderr


def test_version(mesh: Run) -> None:
    assert mesh("version").stdout.startswith("mesh ")
    assert {"mesh", "python", "dagster", "deltalake"} <= json.loads(mesh("version", "--json").stdout).keys()


# -- validate


@pytest.fixture
def products(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the products, to break."""
    folder = tmp_path / "products"
    shutil.copytree(PROJECT / "products", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("MESH_PRODUCTS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_validate_names_every_mistake_with_its_line(mesh: Run, products: Path) -> None:
    assert mesh("validate").exit_code == 0
    contract = products / "sales" / "orders" / "contract.yaml"
    lines = contract.read_text().splitlines()
    lines[0] = "apiVersion: v9"
    number = next(index for index, line in enumerate(lines) if "logicalType: date" in line)
    lines[number] = lines[number].replace("date", "dat")
    contract.write_text("\n".join(lines))
    (products / "finance" / "accounts" / "defs.yaml").write_text("type: nothing\n")
    result = mesh("validate")
    assert result.exit_code == 1
    assert "products/sales/orders/contract.yaml:1: " in result.stdout
    assert f"products/sales/orders/contract.yaml:{number + 1}: " in result.stdout
    assert "products/finance/accounts/defs.yaml:1: " in result.stdout
    assert "did you mean 'date'?" in result.stdout
    found = json.loads(mesh("validate", "--json").stdout)
    assert found["valid"] is False
    mistakes = [one for one in found["findings"] if one["severity"] == "mistake"]
    assert (str(Path("products/sales/orders/contract.yaml")), number + 1) in {
        (one["file"], one["line"]) for one in mistakes
    }


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("products/sales/orders", 1),
        ("products/sales/orders/contract.yaml", 1),
        ("products/sales", 1),
        ("products/sales/customers", 0),
        ("products/finance/accounts", 0),
        ("products/finance/transactions", 0),
    ],
)
def test_validate_looks_only_where_asked(mesh: Run, products: Path, path: str, code: int) -> None:
    contract = products / "sales" / "orders" / "contract.yaml"
    contract.write_text(contract.read_text().replace("status: active", "status: perhaps"))
    result = mesh("validate", path)
    assert result.exit_code == code, result.output
    assert ("perhaps" in result.stdout) == bool(code)


def test_validate_a_contract_of_its_own(mesh: Run, products: Path, tmp_path: Path) -> None:
    file = tmp_path / "draft.yaml"
    file.write_text((products / "sales" / "orders" / "contract.yaml").read_text())
    assert mesh("validate", str(file)).exit_code == 0
    file.write_text("kind: DataContract\n")
    assert mesh("validate", str(file)).exit_code == 1


def test_validate_never_passes_what_is_not_there(mesh: Run, products: Path, tmp_path: Path) -> None:
    for path in ("products/nowhere", str(tmp_path / "home")):
        result = mesh("validate", path)
        assert result.exit_code == 1, result.output
    (products / "sales" / "defs.yaml").write_text("type: mesh_assets.orchestration.Domain\nattributes: {}\n")
    result = mesh("validate", "products/sales/orders")
    assert result.exit_code == 1
    assert "products/sales/defs.yaml:" in result.stdout


def test_a_shift_notices_a_new_a_changed_and_a_removed_product(
    products: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SOURCE_SALES_APP_URL", "postgresql://nobody@127.0.0.1:1/sales")
    orders, returns = products / "sales" / "orders", products / "sales" / "returns"

    def plan() -> CapturePlan:
        settings = Settings()
        return capture_plan(settings, discover(settings.products), "sales", "app")

    known = plan()
    assert not known.contracts_changed()
    returns.mkdir()
    assert not known.contracts_changed()
    (returns / "contract.yaml").write_text("kind: DataContract\n")
    assert known.contracts_changed()
    # A broken product is no reason to begin again and again.
    assert not plan().contracts_changed()
    shutil.rmtree(returns)
    assert not known.contracts_changed()
    (orders / "contract.yaml").write_text((orders / "contract.yaml").read_text() + "\n")
    assert known.contracts_changed()
    shutil.rmtree(orders)
    assert known.contracts_changed()


# -- completion


def test_names_complete() -> None:
    assert completion.domains("s") == ["sales"]
    assert completion.names("sales.") == ["sales.customer_360", "sales.customers", "sales.orders"]
    assert completion.names("sales.orders.") == ["sales.orders.order_lines", "sales.orders.orders"]
    assert completion.selectors("fin")[:2] == ["finance", "finance.accounts"]


def test_the_shell_completes_product_names() -> None:
    command = str(Path(sys.executable).parent / "mesh")
    environment = {
        **os.environ,
        "_MESH_COMPLETE": "complete_bash",
        "COMP_WORDS": "mesh show sales.o",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([command], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["sales.orders"], done.stderr

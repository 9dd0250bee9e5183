"""Code locations: every domain loads by itself, and a mistake stays where it is."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
import yaml

from mesh_assets import code_locations
from mesh_assets.errors import ContractError
from mesh_assets.names import ProductName
from tests.orchestration.conftest import PROJECT

# pytest puts its own filters in place of the program's: what Dagster warns of itself is ignored again.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

LOCATIONS = ["sales", "distribution", "finance", "enterprise"]


def load(name: str) -> dg.Definitions:
    found = getattr(code_locations, name)
    assert isinstance(found, dg.Definitions)
    found.get_repository_def()
    return found


def keys(definitions: dg.Definitions) -> list[str]:
    return sorted(spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs())


def test_workspace_names_every_location() -> None:
    workspace = yaml.safe_load((PROJECT / "workspace.yaml").read_text())
    modules = [entry["python_module"] for entry in workspace["load_from"]]
    assert [module["attribute"] for module in modules] == LOCATIONS
    assert {module["module_name"] for module in modules} == {"mesh_assets.code_locations"}
    domains = {file.parent.name for file in (PROJECT / "products").glob("*/defs.yaml")}
    assert {*domains, "enterprise"} == set(LOCATIONS)


def test_asset_keys_are_unique_over_all_locations() -> None:
    counts = Counter(key for name in LOCATIONS for key in keys(load(name)))
    assert [key for key, count in counts.items() if count > 1] == []
    assert "sales/orders/changes/order_lines" in counts
    assert "sales/orders/current/order_lines" in counts


def test_specs_carry_the_contract() -> None:
    specs = {spec.key.to_user_string(): spec for spec in load("sales").resolve_all_asset_specs()}
    orders = specs["sales/orders/current/orders"]
    assert orders.group_name == "sales_orders"
    assert orders.kinds == {"deltalake", "polars"}
    assert orders.owners[0].startswith("team:")
    assert orders.code_version
    assert [dep.asset_key.to_user_string() for dep in orders.deps] == ["sales/orders/changes/orders"]
    columns = {column.name: column for column in orders.metadata["dagster/column_schema"].columns}
    assert columns["order_id"].constraints.other == ["primary key"]
    assert not columns["order_id"].constraints.nullable
    assert columns["amount"].description
    changes = specs["sales/orders/changes/orders"].metadata["dagster/column_schema"]
    assert "_seq" in {column.name for column in changes.columns}


def test_one_multi_asset_drains_a_source() -> None:
    definitions = load("sales")
    repository = definitions.get_repository_def()
    nodes = {
        definition.op.name
        for definition in repository.assets_defs_by_key.values()
        if definition.is_executable
    }
    assert nodes == {"drain_sales_app"}
    assert definitions.resolve_job_def("sales_app_shift").run_tags == {"mesh/shift": "sales.app"}
    sensor = repository.get_sensor_def("sales_capture")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING


def test_a_broken_contract_leaves_the_other_products(products: Path) -> None:
    contract = products / "sales" / "customers" / "contract.yaml"
    contract.write_text(contract.read_text().replace("schema:", "shcema:", 1))
    definitions = load("sales")
    found = keys(definitions)
    assert "sales/orders/current/orders" in found
    assert "sales/customers" in found
    assert not any(key.startswith("sales/customers/") for key in found)
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    description = specs["sales/customers"].description or ""
    assert "contract.yaml:" in description
    assert "shcema" in description
    checks = definitions.get_repository_def().asset_graph.asset_check_keys
    assert dg.AssetCheckKey(dg.AssetKey(["sales", "customers"]), "loads") in checks
    assert "finance/accounts/current/accounts" in keys(load("finance"))


def test_a_broken_definition_of_a_product_leaves_the_others(products: Path) -> None:
    (products / "sales" / "customers" / "defs.yaml").write_text(
        "type: mesh_assets.orchestration.DataProduct\n\tx"
    )
    assert "sales/orders/current/orders" in keys(load("sales"))


def test_a_broken_domain_says_where_and_leaves_the_other_domains(products: Path) -> None:
    definition = products / "sales" / "defs.yaml"
    definition.write_text(definition.read_text().replace("team:", "taem:"))
    with pytest.raises(ContractError, match=r"sales/defs\.yaml:\d+"):
        load("sales")
    assert "finance/accounts/current/accounts" in keys(load("finance"))


def test_post_processing_of_a_product_is_applied(products: Path) -> None:
    definition = products / "sales" / "orders" / "defs.yaml"
    extra = {"assets": [{"target": "*", "attributes": {"tags": {"retention": "long"}}}]}
    definition.write_text(definition.read_text() + yaml.safe_dump({"post_processing": extra}))
    specs = {spec.key.to_user_string(): spec for spec in load("sales").resolve_all_asset_specs()}
    assert specs["sales/orders/current/orders"].tags["retention"] == "long"
    assert "retention" not in specs["sales/customers/current/customers"].tags


def test_an_unknown_domain_is_named(products: Path) -> None:
    with pytest.raises(AttributeError, match=r"marketing.*available: distribution, finance, sales"):
        _ = code_locations.marketing


def test_product_names_are_asset_keys() -> None:
    assert ProductName("a", "b").asset_key("changes", "c") == ["a", "b", "changes", "c"]


def test_loading_a_location_does_not_load_the_lake() -> None:
    code = (
        "import sys; from mesh_assets import code_locations; code_locations.sales; "
        "sys.exit(any(name in sys.modules for name in ('deltalake', 'polars', 'great_expectations')))"
    )
    assert (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["check", "yaml"], ["check", "defs"], ["list", "defs", "--json"], ["list", "components"]]
)
def test_dg_works(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    program = Path(sys.executable).with_name("dg")
    done = subprocess.run([program, *command], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if command[0] == "list":
        assert "sales" in done.stdout or "DataProduct" in done.stdout

"""Code locations: every domain loads by itself, and a mistake stays where it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from mesh_assets import code_locations
from mesh_assets.catalog.shape import SHAPES
from mesh_assets.contract.discovery import discover
from mesh_assets.errors import ContractError
from mesh_assets.names import ProductName
from mesh_assets.orchestration.rule import check_name
from mesh_assets.quality.ruleset import load as load_rules
from tests.orchestration.conftest import PROJECT

# pytest puts its own filters in place of the program's: what Dagster warns of itself is ignored again.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

STUB = "dagster/auto_created_stub_asset"
LOCATIONS = ["sales", "distribution", "finance", "enterprise"]


def load(name: str) -> dg.Definitions:
    found = getattr(code_locations, name)
    assert isinstance(found, dg.Definitions)
    found.get_repository_def()
    return found


def keys(definitions: dg.Definitions) -> list[str]:
    """What a location defines; what it depends on is there as well, as a stub."""
    return sorted(
        spec.key.to_user_string()
        for spec in definitions.resolve_all_asset_specs()
        if STUB not in spec.metadata
    )


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
    assert orders.description
    contract = discover(PROJECT / "products").products[ProductName("sales", "orders")].contract
    assert contract.table("orders").description in orders.description
    assert [dep.asset_key.to_user_string() for dep in orders.deps] == ["sales/orders/changes/orders"]
    columns = {column.name: column for column in orders.metadata["dagster/column_schema"].columns}
    assert columns["order_id"].constraints.other == ["primary key"]
    assert not columns["order_id"].constraints.nullable
    assert columns["amount"].description
    changes = specs["sales/orders/changes/orders"].metadata["dagster/column_schema"]
    assert "_seq" in {column.name for column in changes.columns}


def test_derived_products_depend_on_current_tables_of_other_domains() -> None:
    specs = {spec.key.to_user_string(): spec for spec in load("sales").resolve_all_asset_specs()}
    derived = specs["sales/customer_360/changes/customer_360"]
    assert {dep.asset_key.to_user_string() for dep in derived.deps} == {
        "distribution/shipments/current/shipments",
        "finance/transactions/current/transactions",
        "sales/customers/current/customers",
        "sales/orders/current/order_lines",
        "sales/orders/current/orders",
    }
    current = specs["sales/customer_360/current/customer_360"]
    assert [dep.asset_key for dep in current.deps] == [derived.key]
    assert derived.kinds == {"deltalake", "polars"}
    references = derived.metadata["dagster/code_references"].code_references
    files = {reference.label: Path(reference.file_path).name for reference in references}
    assert files["contract"] == "contract.yaml"
    assert files["transform"] == "transform.py"
    lineage = current.metadata["dagster/column_lineage"].deps_by_column
    assert [(dep.asset_key, dep.column_name) for dep in lineage["total"]] == [(derived.key, "total")]


def test_freshness_is_the_latency_that_the_contract_promises(products: Path) -> None:
    def promise(product: str, latency: str) -> None:
        contract = products / product / "contract.yaml"
        text = contract.read_text()
        contract.write_text(
            re.sub(r"(property: latency\n    value:) .+\n    unit: .+", rf"\1 {latency}", text)
        )
        assert contract.read_text() != text

    promise("sales/orders", "6\n    unit: minutes")
    promise("finance/revenue", "2\n    unit: hours")
    unit_seconds = {"seconds": 1, "minutes": 60, "hours": 3600}
    windows, promised = {}, {}
    for file in sorted(products.glob("*/*/contract.yaml")):
        contract = yaml.safe_load(file.read_text())
        (latency,) = [one for one in contract["slaProperties"] if one["property"] == "latency"]
        for table in contract["schema"]:
            key = f"{contract['domain']}/{contract['name']}/current/{table['name']}"
            # What is idle is reported only now and then: hence at least five minutes.
            promised[key] = timedelta(seconds=max(300, latency["value"] * unit_seconds[latency["unit"]]))
    for name in LOCATIONS:
        for spec in load(name).resolve_all_asset_specs():
            if STUB in spec.metadata or spec.freshness_policy is None:
                continue
            policy = spec.freshness_policy
            assert isinstance(policy, TimeWindowFreshnessPolicy)
            windows[spec.key.to_user_string()] = policy.fail_window.to_timedelta()
            assert policy.warn_window is not None
            assert policy.warn_window.to_timedelta() < policy.fail_window.to_timedelta()
    assert windows == promised
    assert windows["sales/orders/current/orders"] == timedelta(minutes=6)
    assert windows["finance/revenue/current/revenue"] == timedelta(hours=2)
    assert windows["sales/customers/current/customers"] == timedelta(minutes=5)


def test_another_transform_is_other_code(products: Path) -> None:
    key = dg.AssetKey(["sales", "customer_360", "changes", "customer_360"])

    def code_versions() -> list[str | None]:
        specs = load("sales").resolve_all_asset_specs()
        return [spec.code_version for spec in specs if spec.key == key]

    before = code_versions()
    transform = products / "sales" / "customer_360" / "transform.py"
    transform.write_text(transform.read_text() + "\n# another\n")
    assert code_versions() != before


def test_every_quality_rule_is_a_check() -> None:
    found = discover(PROJECT / "products")
    graph = load("sales").get_repository_def().asset_graph
    specs = {key: graph.get_check_spec(key) for key in graph.asset_check_keys}
    rules = [
        (product, rule)
        for name, product in found.products.items()
        if name.domain == "sales"
        for rule in load_rules(product).rules
    ]
    assert rules
    for product, rule in rules:
        asset = dg.AssetKey([*product.name.asset_key("current", rule.table)])
        spec = specs[dg.AssetCheckKey(asset, check_name(rule.id))]
        assert spec.metadata["quality/rule"] == rule.id
        assert spec.blocking == (rule.blocking and rule.scope == "table")
    assert len({(key.asset_key, key.name) for key in specs}) == len(specs)


def test_a_wrong_rule_leaves_the_other_products(products: Path) -> None:
    suite = products / "sales" / "customers" / "expectations" / "customers.json"
    suite.parent.mkdir(exist_ok=True)
    wrong = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "nonsense"}}
    suite.write_text(json.dumps({"name": "customers", "expectations": [wrong]}))
    definitions = load("sales")
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    assert "nonsense" in (specs["sales/customers"].description or "")
    assert "sales/orders/current/orders" in specs


def test_the_enterprise_folds_all_products() -> None:
    definitions = load("enterprise")
    repository = definitions.get_repository_def()
    parts = {key for key in keys(definitions) if key.startswith("enterprise/catalog/")}
    assert parts == {f"enterprise/catalog/{part}" for part in SHAPES}
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    current = {
        "/".join(name.asset_key("current", table.name))
        for name, product in discover(PROJECT / "products").products.items()
        for table in product.contract.tables
    }
    deps = {dep.asset_key.to_user_string() for dep in specs["enterprise/catalog/datasets"].deps}
    assert deps == current
    assert repository.get_sensor_def("enterprise_published").default_status == dg.DefaultSensorStatus.RUNNING
    names = {key.name for key in repository.asset_graph.asset_check_keys}
    assert names == {"orphans", "unowned", "stale", "failing", "explained"}
    # Reading a day's commits is not for every fold.
    fold = definitions.resolve_job_def("enterprise_catalog").asset_layer.asset_graph
    assert {key.name for key in fold.asset_check_keys} == names - {"explained"}


def test_run_slots_are_enough_for_all_shifts() -> None:
    config = yaml.safe_load((PROJECT / "dagster.yaml").read_text())["run_coordinator"]["config"]
    found = discover(PROJECT / "products")
    shifts = len(found.sources()) + len({product.name.domain for product in found.derived()})
    assert config["max_concurrent_runs"] >= 2 * shifts + 2
    limits = {limit["key"]: limit for limit in config["tag_concurrency_limits"]}
    assert set(limits) == {"mesh/shift", "mesh/derive", "mesh/catalog", "mesh/data_docs"}
    assert all(limit["value"] == {"applyLimitPerUniqueValue": True} for limit in limits.values())
    # A shift and the one that waits to follow it.
    assert limits["mesh/shift"]["limit"] == limits["mesh/derive"]["limit"] == 2


def test_one_multi_asset_drains_a_source() -> None:
    definitions = load("sales")
    repository = definitions.get_repository_def()
    nodes = {
        definition.op.name
        for definition in repository.assets_defs_by_key.values()
        if definition.is_executable
    }
    assert nodes == {"drain_sales_app", "derive_sales"}
    assert definitions.resolve_job_def("sales_app_shift").run_tags == {"mesh/shift": "sales.app"}
    assert definitions.resolve_job_def("sales_derive").run_tags == {"mesh/derive": "sales"}
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

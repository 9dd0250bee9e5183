"""The catalog over what real shifts leave: versions, checks and lineage of captured and derived products."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh_assets.catalog import enterprise, local
from mesh_assets.catalog.finding import Catalog, findings
from mesh_assets.catalog.graph import Graph, Node, version_tree
from mesh_assets.derive.shift import DeriveShift
from mesh_assets.ingest.shift import Shift
from mesh_assets.lake.table import Table
from mesh_assets.lineage.completeness import explain
from mesh_assets.local import organisation
from mesh_assets.local.postgres import Cluster
from mesh_assets.names import CHANGES, CURRENT, ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import checks_uri, statistics_uri
from mesh_assets.shift.report import Budget

QUICK = Budget(idle_seconds=0.1, batch_seconds=0.05, claim_seconds=60)
OVERVIEW = "sales.customer_360"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mesh(postgres: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The sample organisation, captured and derived by shifts, which publish by themselves, and folded."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    organisation.create(postgres, settings)
    mesh = Mesh(settings)
    for domain in organisation.DOMAINS:
        Shift(mesh.plan(domain, "app"), budget=QUICK).run()
    for domain in organisation.DOMAINS:
        DeriveShift(mesh.derive_plans(domain), budget=QUICK).run()
    assert enterprise.fold(mesh.layout).problems == ()
    yield mesh
    for domain in organisation.DOMAINS:
        postgres.drop_database(domain)


def test_every_product_stands_in_the_catalog(mesh: Mesh) -> None:
    graph = Graph.load(mesh.layout)
    for name, product in mesh.discovery.products.items():
        for table in product.contract.tables:
            row = graph.datasets[f"{name}.{table.name}"]
            assert row["version"] == mesh.latest_version(product).version  # type: ignore[union-attr]
            assert row["contract_hash"] == product.contract.hash
            assert graph.columns[f"{name}.{table.name}"] == tuple(one.name for one in table.columns)


def test_lineage_of_real_runs_leads_from_source_to_derived_product(mesh: Mesh) -> None:
    graph = Graph.load(mesh.layout)
    up = {str(tree.node) for _, tree in graph.tree(graph.resolve(OVERVIEW), "upstream").nodes()}
    assert {
        "sales.customers.customers",
        "sales.app/shop.customers",
        "finance.transactions.transactions",
    } <= up
    down = {tree.node.dataset for _, tree in graph.tree(graph.resolve("sales.orders"), "downstream").nodes()}
    assert down <= graph.datasets.keys()
    assert not [name for name in up if "/" in name and "app/" not in name], up
    lineage = [link for link in graph.links if link.origin == "lineage"]
    assert {link.target.dataset for link in lineage} >= {"sales.orders.orders", f"{OVERVIEW}.customer_360"}
    total = graph.resolve(f"{OVERVIEW}.total")
    columns = {str(tree.node) for _, tree in graph.tree(total, "upstream").nodes()}
    assert "finance.transactions.transactions.amount" in columns
    assert "finance.app/ledger.transactions.amount" in columns
    reached = {one.dataset: one for one in graph.impact(Node("finance.transactions.transactions", "amount"))}
    assert "total" in reached[f"{OVERVIEW}.customer_360"].columns


def test_runs_and_versions_hang_together(mesh: Mesh) -> None:
    tree = version_tree(mesh.layout, OVERVIEW)
    assert {child.product for child in tree.children} >= {"sales.customers", "sales.orders"}
    assert all(child.run_id for child in tree.children)


def test_every_commit_of_every_product_is_explained_by_one_run(mesh: Mesh) -> None:
    for name, product in mesh.discovery.products.items():
        found = explain(mesh.layout, name, [table.name for table in product.contract.tables])
        assert found.complete, [one.sentence() for one in (*found.unexplained, *found.ambiguous)]
        assert (found.pending, found.unlisted) == ((), ())
        beside = [checks_uri(mesh.layout, name), statistics_uri(mesh.layout, name)]
        uris = [
            uri
            for table in product.contract.tables
            for uri in (mesh.layout.table(name, kind, table.name) for kind in (CHANGES, CURRENT))
        ]
        assert all(Table.exists(uri) for uri in (*uris, *beside)), name
        commit_count = sum(
            Table.open(uri).version + 1 for uri in (*uris, *beside, mesh.layout.versions(name))
        )
        assert found.commit_count == commit_count


def test_nothing_is_wrong_with_it(mesh: Mesh) -> None:
    defined = {str(name) for name in mesh.discovery.products}
    found = findings(Catalog.load(mesh.layout), defined=defined)
    assert [one for one in found if one.kind != "failing"] == []


def test_a_record_says_what_lies_in_the_lake(mesh: Mesh) -> None:
    record = local.read(mesh.layout, ProductName("sales", "orders"))
    assert record is not None
    assert record.releases
    assert record.versions[-1].version == mesh.latest_version(mesh.product("sales.orders")).version  # type: ignore[union-attr]
    assert record.tables[0].schemas
    assert record.tables[0].change_count > 0

"""Lineage up and down, now and then, and what a change reaches."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from mesh_assets.catalog import enterprise
from mesh_assets.catalog.graph import Graph, Node, version_tree
from mesh_assets.errors import AsOfRefused, UnknownName
from mesh_assets.names import CURRENT, Layout, ProductName
from tests.catalog.world import START, World

ORDERS = ProductName("sales", "orders")
CUSTOMERS = ProductName("sales", "customers")
OVERVIEW = ProductName("sales", "customer_360")
TABLE = "sales.customer_360.customer_360"
EMAIL = Node("sales.customers.customers", "email")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A lake in which every product has a record."""
    world = World(Layout(str(tmp_path / "lake")))
    for name in world.discovery.products:
        world.publish(name)
    return world


def _graph(world: World) -> Graph:
    enterprise.fold(world.layout)
    return Graph.load(world.layout)


def _names(graph: Graph, node: Node, direction: str = "upstream") -> set[str]:
    tree = graph.tree(node, direction)  # type: ignore[arg-type]
    return {str(one.node) for _, one in tree.nodes()}


def test_names_are_resolved_as_everywhere(world: World) -> None:
    graph = _graph(world)
    assert graph.resolve("sales.orders") == Node("sales.orders.orders")
    assert graph.resolve("sales.orders.order_lines") == Node("sales.orders.order_lines")
    assert graph.resolve("sales.orders.amount") == Node("sales.orders.orders", "amount")
    assert graph.resolve("sales.orders.order_lines.sku") == Node("sales.orders.order_lines", "sku")
    assert graph.resolve("sales.app/shop.orders") == Node("sales.app/shop.orders")
    for name, hint in (
        ("sales.order", "sales.orders"),
        ("sales.orders.amuont", "amount"),
        ("orders", "sales.orders"),
        ("sales.orders.order_lines.amount", "order_id"),
    ):
        with pytest.raises(UnknownName, match=hint):
            graph.resolve(name)


def test_contracts_alone_say_what_products_are_made_of(world: World) -> None:
    graph = _graph(world)
    assert {"sales.orders.orders", "sales.app/shop.orders", "sales.customers.customers"} <= _names(
        graph, Node(TABLE)
    )
    assert TABLE in _names(graph, Node("sales.app/shop.customers"), "downstream")
    assert _names(graph, Node("sales.orders.orders", "amount")) == {"sales.app/shop.orders.amount"}
    depth = graph.tree(Node(TABLE), "upstream", 1)
    assert all(hops == 1 for hops, _ in depth.nodes())


def test_columns_follow_the_lineage_of_runs(world: World) -> None:
    customers = world.uri(CUSTOMERS, CURRENT)
    orders = world.uri(ORDERS, CURRENT)
    world.emit(
        *world.derive(
            OVERVIEW,
            {
                "total": [(orders, "amount", "AGGREGATION"), (customers, "customer_id", "JOIN")],
                "email": [(customers, "email", "IDENTITY")],
            },
        )
    )
    graph = _graph(world)
    # What is subscribed to but not read is no part of it.
    assert {child.node.dataset for child in graph.tree(Node(TABLE), "upstream", 1).children} == {
        "sales.customers.customers",
        "sales.orders.orders",
    }
    up = graph.tree(Node(TABLE, "total"), "upstream")
    assert {str(child.node) for child in up.children} == {
        "sales.orders.orders.amount",
        "sales.customers.customers.customer_id",
    }
    assert {"sales.app/shop.orders.amount"} <= _names(graph, Node(TABLE, "total"))
    (link,) = next(child for child in up.children if child.node.column == "amount").links
    assert (link.type, link.subtype, link.origin) == ("DIRECT", "AGGREGATION", "lineage")
    assert link.job == "mesh.sales/customer_360.derive"
    assert f"{TABLE}.email" in _names(graph, EMAIL, "downstream")
    assert f"{TABLE}.total" not in _names(graph, EMAIL, "downstream")


def test_lineage_is_as_it_was(world: World) -> None:
    begun = world.now
    for number, kind in enumerate((0, 2, 0)):
        world.emit(*world.derivation(OVERVIEW, kind))
        world.tick(100)
        if number == 1:
            between = world.now
    enterprise.fold(world.layout)

    def columns(graph: Graph) -> set[str]:
        return {
            link.target.column
            for link in graph.links
            if link.target.dataset == TABLE and link.origin == "lineage"
        } - {""}

    many = {"column_0", "column_1", "column_2", "total"}
    assert columns(Graph.load(world.layout, begun)) == set()
    assert columns(Graph.load(world.layout, between)) == many
    assert columns(Graph.load(world.layout, between - timedelta(seconds=102))) == {"column_0", "total"}
    assert columns(Graph.load(world.layout)) == {"column_0", "total"}
    assert columns(Graph.load(world.layout, world.now)) == {"column_0", "total"}


def test_what_a_contract_says_holds_from_its_release(world: World) -> None:
    world.release(ORDERS)
    world.publish(ORDERS)
    graph = _graph(world)
    assert _names(graph, Node("sales.orders.orders", "amount"))
    before = Graph.load(world.layout, START)
    assert _names(before, Node("sales.orders.orders", "amount")) == set()


def test_impact_names_columns_owners_and_what_is_not_known(world: World) -> None:
    world.emit(*world.derive(OVERVIEW, {"total": [(world.uri(ORDERS, CURRENT), "amount", "AGGREGATION")]}))
    reached = {one.dataset: one for one in _graph(world).impact(Node("sales.orders.orders", "amount"))}
    overview = reached[TABLE]
    assert (overview.columns, overview.types, overview.hops) == (("total",), ("DIRECT/AGGREGATION",), 1)
    assert overview.owners[0] == "team:sales-engineering"
    assert overview.product == "sales.customer_360"
    # No run of it has left lineage yet.
    assert reached["finance.revenue.revenue"].columns == ()
    graph = Graph.load(world.layout)
    email = {one.dataset for one in graph.impact(EMAIL)}
    assert TABLE not in email
    assert TABLE in {one.dataset for one in graph.impact(Node("sales.orders.orders"))}
    customers = {one.dataset for one in graph.impact(Node("sales.customers.customers"))}
    assert "sales.customer_360.spending" in customers
    assert TABLE not in customers


def test_versions_lead_to_the_runs_that_made_them(world: World) -> None:
    first, second = world.version(ORDERS), world.version(CUSTOMERS)
    parents = {str(ORDERS): 1, str(CUSTOMERS): 1}
    made = world.version(OVERVIEW, parents)
    between = world.now
    world.version(ORDERS)
    world.version(OVERVIEW, {**parents, str(ORDERS): 2})
    for name in (ORDERS, CUSTOMERS, OVERVIEW):
        world.publish(name)
    run, events = world.capture(ORDERS, 1)
    world.emit(*events, run.complete(world.tick()))
    enterprise.fold(world.layout)
    up = version_tree(world.layout, str(OVERVIEW), 1)
    assert [(one.product, one.version, one.run_id) for one in up.children] == [
        (str(CUSTOMERS), 1, second.run_id),
        (str(ORDERS), 1, first.run_id),
    ]
    assert (up.hash, up.actor) == (made.hash, "tester")
    newest = version_tree(world.layout, str(OVERVIEW))
    assert [(one.product, one.version) for one in newest.children][1] == (str(ORDERS), 2)
    down = version_tree(world.layout, str(ORDERS), 2, direction="downstream")
    assert [(one.product, one.version) for one in down.children] == [(str(OVERVIEW), 2)]
    assert version_tree(world.layout, str(OVERVIEW), as_of=between).version == 1
    for version, moment in ((9, None), (None, START)):
        with pytest.raises(AsOfRefused, match="customer_360"):
            version_tree(world.layout, str(OVERVIEW), version, as_of=moment)

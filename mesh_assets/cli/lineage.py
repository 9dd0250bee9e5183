"""``mesh lineage`` and ``mesh impact``: what a product is made of, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mesh_assets.catalog.graph import Direction, Graph, Link, Node, Tree, VersionNode, version_tree
from mesh_assets.cli.folded import folded, moment_of
from mesh_assets.cli.terminal import cell, console, counted, emit, moment, note, table
from mesh_assets.product import Mesh

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree as Shown

_HEADINGS: dict[Direction, str] = {"upstream": "made of", "downstream": "read by"}


def lineage(
    mesh: Mesh,
    name: str,
    column: str | None,
    directions: tuple[Direction, ...],
    as_of: str | None,
    depth: int | None,
    *,
    as_json: bool,
) -> None:
    """Print where a table or column comes from and where it goes to."""
    at = moment_of(as_of)
    graph = Graph.load(folded(mesh), at)
    node = graph.resolve(name)
    if column is not None:
        node = graph.column(node.dataset, column)
    trees: dict[Direction, Tree] = {one: graph.tree(node, one, depth) for one in directions}
    if as_json:
        record: dict[str, Any] = {
            "name": str(node),
            "dataset": node.dataset,
            "column": node.column or None,
            "as_of": at,
        }
        emit(record | {one: _record(tree)["children"] for one, tree in trees.items()})
        return
    out = console()
    for direction, tree in trees.items():
        top = _title(graph, node, f"{_HEADINGS[direction]}:" if tree.children else "")
        shown = _tree(top)
        for child in tree.children:
            _grow(shown, graph, child)
        out.print(shown)
        if not tree.children:
            out.print(cell(f"  nothing is known of what it is {_HEADINGS[direction]}", "dim"))


def versions(
    mesh: Mesh,
    name: str,
    version: int | None,
    directions: tuple[Direction, ...],
    as_of: str | None,
    *,
    as_json: bool,
) -> None:
    """Print which versions a product version was made of, and by which runs."""
    at = moment_of(as_of)
    layout = folded(mesh)
    graph = Graph.load(layout, at)
    product = str(graph.datasets.get(graph.resolve(name).dataset, {}).get("product") or name)
    trees: dict[Direction, VersionNode] = {
        direction: version_tree(layout, product, version, direction=direction, as_of=at)
        for direction in directions
    }
    if as_json:
        record: dict[str, Any] = {"product": product, "as_of": at}
        emit(record | {one: _version_record(tree) for one, tree in trees.items()})
        return
    out = console()
    for direction, tree in trees.items():
        shown = _tree(_version_title(tree, f"{_HEADINGS[direction]}:" if tree.children else ""))
        for child in tree.children:
            _grow_version(shown, child)
        out.print(shown)
        if not tree.children:
            out.print(cell(f"  no version is known that it is {_HEADINGS[direction]}", "dim"))


def impact(mesh: Mesh, name: str, as_of: str | None, *, as_json: bool) -> None:
    """Print what a change of a table or column reaches."""
    graph = Graph.load(folded(mesh), moment_of(as_of))
    node = graph.resolve(name)
    reached = graph.impact(node)
    if as_json:
        emit(
            {
                "name": str(node),
                "dataset": node.dataset,
                "column": node.column or None,
                "affected": [
                    {
                        "dataset": one.dataset,
                        "product": one.product or None,
                        "hops": one.hops,
                        "columns": list(one.columns),
                        "how": list(one.types),
                        "owners": list(one.owners),
                    }
                    for one in reached
                ],
            }
        )
        return
    out = console()
    if not reached:
        out.print(cell(f"nothing that is known depends on {node}"), soft_wrap=True)
        return
    made = table("reaches", "hops", "columns", "how", "whom to ask", right=("hops",))
    for one in reached:
        made.add_row(
            cell(one.dataset, "bold"),
            cell(one.hops),
            cell(
                ", ".join(one.columns) if one.columns else "which columns is not known",
                "" if one.columns else "dim",
            )
            if node.column
            else cell("all", "dim"),
            cell(", ".join(way.lower() for way in one.types)),
            cell(", ".join(one.owners)),
        )
    out.print(made)
    products = {one.product for one in reached if one.product}
    owners = {one.owners[0] for one in reached if one.owners}
    note(f"a change of {node} reaches {counted(len(products), 'product')} of {counted(len(owners), 'owner')}")


def _record(tree: Tree) -> dict[str, Any]:
    return {
        "name": str(tree.node),
        "dataset": tree.node.dataset,
        "column": tree.node.column or None,
        "links": [_link(link) for link in tree.links],
        "repeated": tree.repeated,
        "children": [_record(child) for child in tree.children],
    }


def _link(link: Link) -> dict[str, Any]:
    return {
        "from": str(link.source),
        "to": str(link.target),
        "type": link.type or None,
        "subtype": link.subtype or None,
        "origin": link.origin,
        "job": link.job or None,
        "description": link.description or None,
        "masking": link.masking,
    }


def _version_record(tree: VersionNode) -> dict[str, Any]:
    return {
        "product": tree.product,
        "version": tree.version,
        "created_at": tree.created_at,
        "run_id": tree.run_id,
        "actor": tree.actor,
        "runs": list(tree.runs),
        "contract_hash": tree.contract_hash,
        "hash": tree.hash,
        "repeated": tree.repeated,
        "children": [_version_record(child) for child in tree.children],
    }


def _tree(title: Text) -> Shown:
    from rich.tree import Tree as Shown

    return Shown(title, guide_style="dim")


def _title(graph: Graph, node: Node, words: str) -> Text:
    text = cell(str(node), "bold")
    row = graph.datasets.get(node.dataset)
    if row and row["version"] is not None:
        text.append(f"  version {row['version']}", "dim")
    if words:
        text.append(f"  {words}", "dim")
    return text


def _grow(shown: Shown, graph: Graph, tree: Tree) -> None:
    text = cell(str(tree.node), "bold" if tree.node.dataset in graph.datasets else "")
    if ways := _ways(tree.links):
        text.append(f"  {ways}", "cyan")
    if tree.repeated:
        text.append("  (above)", "dim")
    below = shown.add(text)
    for child in tree.children:
        _grow(below, graph, child)


def _ways(links: Iterable[Link]) -> str:
    ways = {
        (link.subtype or link.type).lower().replace("_", " ") + (" masked" if link.masking else "")
        for link in links
    }
    return ", ".join(sorted(ways - {""}))


def _version_title(tree: VersionNode, words: str = "") -> Text:
    text = cell(f"{tree.product} version {tree.version}", "bold")
    text.append(f"  {moment(tree.created_at)}, run {tree.run_id or '-'} by {tree.actor or '-'}", "dim")
    if tree.runs:
        text.append(f"  {'; '.join(tree.runs)}", "cyan")
    if tree.repeated:
        text.append("  (above)", "dim")
    if words:
        text.append(f"  {words}", "dim")
    return text


def _grow_version(shown: Shown, tree: VersionNode) -> None:
    below = shown.add(_version_title(tree))
    for child in tree.children:
        _grow_version(below, child)

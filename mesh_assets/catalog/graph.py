"""What is made of what: tables, columns and versions, up and down, now or as of a past moment.

A product's change log and current table are one node here: they hold the same. A statement of
lineage (which columns one output comes from) holds from when it is first made until the job makes
another one; what a contract says holds from one release to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mesh_assets.catalog import history
from mesh_assets.catalog.canonical import Canonical, Shape
from mesh_assets.catalog.shape import CHANGES, COLUMNS, DATASETS, EDGES, RUNS
from mesh_assets.errors import AsOfRefused, UnknownName
from mesh_assets.names import Layout

Direction = Literal["upstream", "downstream"]
_END = datetime.max.replace(tzinfo=UTC)
_OUTPUT = ["output", "job"]
_NAMED_OUTPUT = (
    pl.when(pl.col("to_dataset") == "")
    .then(pl.concat_str("to_namespace", pl.lit(" "), "to_name"))
    .otherwise(pl.concat_str("to_dataset", pl.lit(":"), "to_kind"))
    .alias("output")
)
"""What a statement is about: a table of ours wherever it lies, one of others by its place."""


@dataclass(frozen=True, order=True)
class Node:
    """A table, or a column of it.

    Attributes:
        dataset: ``domain.product.table``, ``domain.source/schema.table`` at a source, or an
            OpenLineage name of what is not ours.
        column: "" for the whole table.
    """

    dataset: str
    column: str = ""

    def __str__(self) -> str:
        return f"{self.dataset}.{self.column}" if self.column else self.dataset


@dataclass(frozen=True, order=True)
class Link:
    """One node that is made of another.

    Attributes:
        type, subtype: OpenLineage's kind of transformation, for columns.
        origin: ``contract`` or ``lineage``: who says so.
        job: which job does it, if lineage says so.
    """

    source: Node
    target: Node
    type: str = ""
    subtype: str = ""
    origin: str = ""
    job: str = ""
    description: str = ""
    masking: bool = False


@dataclass(frozen=True)
class Tree:
    """A node and what it is made of (or what is made of it).

    Attributes:
        links: between this node and the one above it.
        repeated: whether what is below was shown elsewhere in the tree already.
    """

    node: Node
    links: tuple[Link, ...] = ()
    children: tuple[Tree, ...] = ()
    repeated: bool = False

    def nodes(self) -> Iterator[tuple[int, Tree]]:
        """Every node below the top with its distance, nearest branches first."""
        level = [(1, child) for child in self.children]
        while level:
            yield from level
            level = [(hops + 1, child) for hops, tree in level for child in tree.children]


@dataclass(frozen=True)
class Affected:
    """A table that a change of a node reaches.

    Attributes:
        hops: how many products lie between, this one included.
        columns: the columns reached; empty: the table is reached, its columns are not known.
        types: how, for example DIRECT/AGGREGATION.
    """

    dataset: str
    hops: int
    columns: tuple[str, ...]
    types: tuple[str, ...]
    owners: tuple[str, ...]
    product: str


@dataclass(frozen=True)
class VersionNode:
    """One product version, the run that made it, and the versions it was made of (or that were made of it).

    Attributes:
        runs: the lineage runs that are part of that run: ``job state``.
    """

    product: str
    version: int
    run_id: str
    actor: str
    created_at: datetime
    contract_hash: str
    hash: str
    runs: tuple[str, ...] = ()
    children: tuple[VersionNode, ...] = ()
    repeated: bool = False


@dataclass(frozen=True)
class Graph:
    """Tables, columns and links as of one moment.

    Attributes:
        datasets: rows of the table ``datasets``, by name.
        columns: names of each dataset's columns, in order.
        links: of tables and of columns.
    """

    datasets: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, tuple[str, ...]]
    links: tuple[Link, ...]
    _above: Mapping[Node, tuple[Link, ...]] = field(default_factory=dict, repr=False)
    _below: Mapping[Node, tuple[Link, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, layout: Layout, as_of: datetime | None = None) -> Graph:
        """Read the enterprise catalog's graph, now or as it was."""
        moment = (as_of or _END).astimezone(UTC) if as_of else _END
        datasets = {row["dataset"]: row for row in _read(layout, DATASETS).to_pylist()}
        table = Canonical(layout.enterprise(EDGES.name), EDGES)
        wanted = [name for name in table.buckets() if name[0] != "r"]
        frame = pl.from_arrow(table.read(wanted))
        assert isinstance(frame, pl.DataFrame)
        kept = pl.concat([_declared(frame, moment), _stated(table, frame, moment)])
        links = _told(sorted(set(_links(kept.iter_rows(named=True), datasets))), datasets)
        columns: dict[str, list[str]] = {}
        for row in _read(layout, COLUMNS, ["dataset", "column"]).to_pylist():
            columns.setdefault(row["dataset"], []).append(row["column"])
        above: dict[Node, list[Link]] = {}
        below: dict[Node, list[Link]] = {}
        for link in links:
            above.setdefault(link.target, []).append(link)
            below.setdefault(link.source, []).append(link)
        return cls(
            datasets,
            {name: tuple(own) for name, own in columns.items()},
            tuple(links),
            {node: tuple(own) for node, own in above.items()},
            {node: tuple(own) for node, own in below.items()},
        )

    def resolve(self, name: str) -> Node:
        """The table or column that ``domain.product[.table][.column]`` names; tables come before columns.

        Raises:
            UnknownName: if there is none; it lists what there is.
        """
        if name in self.datasets or any(link.source.dataset == name for link in self.links):
            return Node(name)
        parts = name.split(".")
        product = ".".join(parts[:2])
        own = {row["table"]: dataset for dataset, row in self.datasets.items() if row["product"] == product}
        if not own:
            known = sorted({row["product"] for row in self.datasets.values()})
            near = [one for one in known if name in one.split(".")] or get_close_matches(product, known, n=1)
            raise UnknownName(
                f"the catalog has no product {product!r}",
                available=known,
                hint=f"did you mean {near[0]!r}?" if near else "write domain.product[.table][.column]",
            )
        rest = parts[2:]
        if rest and rest[0] in own:
            dataset, rest = own[rest[0]], rest[1:]
        else:
            default = [one for one in own.values() if self.datasets[one]["is_default"]]
            if not default:
                raise UnknownName(f"{product} has several tables and none of its own name", available=own)
            dataset = default[0]
        if not rest:
            return Node(dataset)
        return self.column(dataset, ".".join(rest), tables=[] if len(parts) == 4 else list(own))

    def column(self, dataset: str, column: str, *, tables: Iterable[str] = ()) -> Node:
        """A column of a table.

        Raises:
            UnknownName: if there is no such column, now or then.
        """
        node = Node(dataset, column)
        known = self.columns.get(dataset, ())
        if column not in known and node not in self._above and node not in self._below:
            noun = f"column of {dataset}" if not tables else f"table or column of {dataset}"
            raise UnknownName.of(noun, column, [*known, *tables])
        return node

    def made_of(self, product: str) -> tuple[str, ...]:
        """The tables that a product is directly made of."""
        reads = {one.source.dataset for one in self.links if self._product(one.target) == product}
        return tuple(sorted(name for name in reads if self._product(Node(name)) != product))

    def consumers(self, product: str) -> tuple[str, ...]:
        """The products that are directly made of a product."""
        reading = {self._product(one.target) for one in self.links if self._product(one.source) == product}
        return tuple(sorted(reading - {"", product}))

    def _product(self, node: Node) -> str:
        return str(self.datasets.get(node.dataset, {}).get("product") or "")

    def tree(self, node: Node, direction: Direction, depth: int | None = None) -> Tree:
        """What a node is made of, or what is made of it."""
        return self._tree(node, direction, depth, {node}, ())

    def impact(self, node: Node) -> list[Affected]:
        """The tables that a change of a node reaches, nearest first.

        A table whose columns' origin is not known is reached as a whole by everything that it reads.
        """
        tables = {tree.node.dataset: hops for hops, tree in self._reached(Node(node.dataset))}
        columns: dict[str, set[str]] = {}
        types: dict[str, set[str]] = {}
        if node.column:
            for _, tree in self._reached(node):
                own = columns.setdefault(tree.node.dataset, set())
                own |= {tree.node.column} if tree.node.column else set()
                types.setdefault(tree.node.dataset, set()).update(_way(link) for link in tree.links)
            blind = {node.dataset, *columns}
            for name in sorted(tables, key=lambda name: tables[name]):
                if name in columns or self._explained(name):
                    continue
                if any(link.source.dataset in blind for link in self._above.get(Node(name), ())):
                    columns[name] = set()
                    blind.add(name)
        else:
            columns = {name: set() for name in tables}
        return [
            Affected(
                dataset=name,
                hops=tables.get(name, 1),
                columns=tuple(sorted(own)),
                types=tuple(sorted(way for way in types.get(name, ()) if way)),
                owners=tuple(self.datasets.get(name, {}).get("owners") or ()),
                product=str(self.datasets.get(name, {}).get("product") or ""),
            )
            for name, own in sorted(columns.items(), key=lambda item: (tables.get(item[0], 1), item[0]))
        ]

    def _reached(self, node: Node) -> list[tuple[int, Tree]]:
        return list(self.tree(node, "downstream").nodes())

    def _explained(self, dataset: str) -> bool:
        """Whether lineage says where the columns of a table come from."""
        return any(
            link.target.dataset == dataset and link.target.column and link.type == "DIRECT"
            for link in self.links
        )

    def _tree(
        self, node: Node, direction: Direction, depth: int | None, seen: set[Node], links: tuple[Link, ...]
    ) -> Tree:
        if depth == 0:
            return Tree(node, links)
        grouped: dict[Node, list[Link]] = {}
        for link in self._next(node, direction):
            grouped.setdefault(link.source if direction == "upstream" else link.target, []).append(link)
        children = []
        fresh = [other for other in sorted(grouped) if other not in seen]
        seen |= set(fresh)
        for other, own in sorted(grouped.items()):
            if other in fresh:
                below = None if depth is None else depth - 1
                children.append(self._tree(other, direction, below, seen, tuple(own)))
            elif other != node:
                children.append(Tree(other, tuple(own), repeated=True))
        return Tree(node, links, tuple(children))

    def _next(self, node: Node, direction: Direction) -> Iterator[Link]:
        ways = self._above if direction == "upstream" else self._below
        for link in ways.get(node, ()):
            # Of a table's links, those that begin at columns belong to columns.
            if node.column or not (link.source.column or link.target.column):
                yield link
        if node.column and direction == "upstream":
            # What decides on the rows (a filter, a join) decides on every column.
            yield from (link for link in ways.get(Node(node.dataset), ()) if link.type)


def version_tree(
    layout: Layout,
    product: str,
    version: int | None = None,
    *,
    direction: Direction = "upstream",
    as_of: datetime | None = None,
) -> VersionNode:
    """A product version with the runs and versions that it was made of, or that were made of it.

    Args:
        layout: where the catalog lies.
        product: ``domain.product``.
        version: which; the newest (as of the moment) when left out.
        direction: to what it was made of, or to what was made of it.
        as_of: only what was there at this moment.

    Raises:
        AsOfRefused: if there was no such version (yet).
    """
    runs: dict[str, list[str]] = {}
    known = Canonical(layout.enterprise(RUNS.name), RUNS).read(
        columns=["run_id", "parent_run_id", "namespace", "job", "state"]
    )
    for row in known.to_pylist():
        for run_id in {row["run_id"], row["parent_run_id"]} - {""}:
            runs.setdefault(run_id, []).append(f"{row['namespace']}/{row['job']} {row['state']}")
    trees = _VersionTrees(layout, runs, direction, as_of)
    row = trees.row(product, version)
    if row is None:
        asked = "no version" if version is None else f"no version {version}"
        when = f" as of {as_of.isoformat()}" if as_of else ""
        raise AsOfRefused(f"the catalog has {asked} of {product}{when}", hint="see `mesh products`")
    return trees.tree(row, set())


class _VersionTrees:
    def __init__(
        self, layout: Layout, runs: Mapping[str, list[str]], direction: Direction, as_of: datetime | None
    ) -> None:
        self._table = Canonical(layout.enterprise(CHANGES.name), CHANGES)
        self._runs = runs
        self._direction = direction
        self._as_of = as_of

    def row(self, product: str, version: int | None = None) -> dict[str, Any] | None:
        """One version of a product, its newest without a number; None if it is not there (yet)."""
        rows = self._seen(self._table.read(history.buckets_of(self._table, product)))
        rows = rows.filter(pc.field("product") == product)
        if version is not None:
            rows = rows.filter(pc.field("version") == version)
        found: list[dict[str, Any]] = rows.sort_by("version").to_pylist(maps_as_pydicts="strict")
        return found[-1] if found else None

    def tree(self, row: Mapping[str, Any], above: set[tuple[str, int]]) -> VersionNode:
        """The tree below one version."""
        key = (row["product"], row["version"])
        repeated = key in above
        above.add(key)
        children = [] if repeated else [self.tree(child, above) for child in self._children(row)]
        return VersionNode(
            product=row["product"],
            version=row["version"],
            run_id=row["run_id"],
            actor=row["actor"],
            created_at=row["created_at"],
            contract_hash=row["contract_hash"],
            hash=row["hash"],
            runs=tuple(sorted(set(self._runs.get(row["run_id"], ())))),
            children=tuple(children),
            repeated=repeated,
        )

    def _children(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._direction == "upstream":
            wanted = sorted((row["parents"] or {}).items())
        else:
            wanted = self._readers(row["product"], row["version"])
        found = (self.row(product, version) for product, version in wanted)
        return [one for one in found if one is not None]

    def _readers(self, product: str, version: int) -> list[tuple[str, int]]:
        """The first version of each product that was made of this version; later ones hold what it does."""
        rows = self._seen(self._table.read(columns=["product", "version", "created_at", "parents"]))
        read = pc.map_lookup(rows["parents"].combine_chunks(), pa.scalar(product), "first")
        reading = rows.filter(pc.fill_null(pc.greater_equal(read, version), False))
        firsts = reading.group_by("product").aggregate([("version", "min")]).to_pylist()
        return sorted((one["product"], one["version_min"]) for one in firsts)

    def _seen(self, rows: pa.Table) -> pa.Table:
        return rows if self._as_of is None else rows.filter(pc.field("created_at") <= self._as_of)


def _read(layout: Layout, shape: Shape, columns: list[str] | None = None) -> Any:  # noqa: ANN401 - an Arrow table
    return Canonical(layout.enterprise(shape.name), shape).read(columns=columns)


def _declared(frame: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    since, until = pl.col("first_seen_at"), pl.col("last_seen_at")
    return frame.filter(
        (pl.col("origin") == "contract")
        & (since.is_null() | (since <= moment))
        & (until.is_null() | (until > moment))
    )


def _stated(table: Canonical, frame: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    """What lineage says: of each job and output the statement that was in force."""
    said = frame.filter((pl.col("origin") == "lineage") & (pl.col("first_seen_at") <= moment))
    said = said.with_columns(_NAMED_OUTPUT)
    statements = (
        said.filter(pl.col("statement") != "")
        .group_by([*_OUTPUT, "statement"])
        .agg(pl.col("first_seen_at").min().alias("since"), pl.col("last_seen_at").max().alias("until"))
    )
    # A statement that was made before and after the moment: when was it made last before it?
    running = pl.col("until") > moment
    others = pl.len().over(_OUTPUT) > 1
    doubtful = statements.filter(running & others)
    if not doubtful.is_empty():
        made = (
            table.scan()
            .filter((pl.col("kind") == "run") & (pl.col("statement") != ""))
            .filter(pl.col("first_seen_at") <= moment)
            .with_columns(_NAMED_OUTPUT)
            .group_by([*_OUTPUT, "statement"])
            .agg(pl.col("first_seen_at").max().alias("made"))
            .collect()
        )
        statements = statements.join(made, on=[*_OUTPUT, "statement"], how="left").with_columns(
            pl.when(running)
            .then(pl.col("made").fill_null(pl.col("since")))
            .otherwise(pl.col("until"))
            .alias("until")
        )
    chosen = statements.sort("until", "statement").unique(_OUTPUT, keep="last", maintain_order=True)
    stated = said.join(chosen.select([*_OUTPUT, "statement"]), on=[*_OUTPUT, "statement"], how="semi")
    return pl.concat([stated, said.filter(pl.col("statement") == "")]).drop("output")


def _links(rows: Iterable[Mapping[str, Any]], datasets: Mapping[str, Mapping[str, Any]]) -> Iterator[Link]:
    for row in rows:
        target = row["to_dataset"] or _foreign(row["to_namespace"], row["to_name"])
        source = row["from_dataset"] or _source(row, datasets.get(target))
        link = Link(
            Node(source, row["from_column"]),
            Node(target, row["to_column"]),
            row["type"],
            row["subtype"],
            row["origin"],
            row["job"],
            row["description"],
            row["masking"],
        )
        # A log's own columns (_seq, _op and so on) are no column of the product.
        if source != target and not row["from_column"].startswith("_") and row["to_column"][:1] != "_":
            yield link


def _told(links: list[Link], datasets: Mapping[str, Mapping[str, Any]]) -> list[Link]:
    """Links without the subscriptions of derived tables whose runs have told what they really read."""
    known = {link.target.dataset for link in links if link.origin == "lineage"}
    return [
        link
        for link in links
        if link.origin == "lineage"
        or link.type
        or link.target.dataset not in known
        or not datasets.get(link.target.dataset, {}).get("derived")
    ]


def _source(row: Mapping[str, Any], target: Mapping[str, Any] | None) -> str:
    """A source's table by the name that the product's definition gives it, if it is that one."""
    if target and target["source_table"] and f".{row['from_name']}".endswith(f".{target['source_table']}"):
        return str(target["inputs"][0])
    return _foreign(row["from_namespace"], row["from_name"])


def _foreign(namespace: str, name: str) -> str:
    return f"{namespace}/{name.lstrip('/')}"


def _way(link: Link) -> str:
    return "/".join(part for part in (link.type, link.subtype) if part)

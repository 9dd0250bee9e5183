"""ODCS sql rules: DuckDB runs them over a table's rows, or over one batch of changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from mesh_assets.quality.rule import Query

if TYPE_CHECKING:
    import duckdb

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": "2",
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
}
_PLACEHOLDER = re.compile(r"\$?\{(table|object|column|property|schema)\}")
# What gives another value each time, or at another time: a row's fate must not depend on it.
_VOLATILE = frozenset(
    {"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "now", "today", "current_date", "current_time",
     "current_timestamp", "get_current_timestamp", "get_current_time", "transaction_timestamp",
     "localtime", "localtimestamp", "nextval", "currval", "setseed", "getvariable", "current_setting",
     "current_localtime", "current_localtimestamp"}
)  # fmt: skip


class BadQuery(Exception):
    """The text is not one SELECT that DuckDB takes."""


@dataclass(frozen=True)
class Parsed:
    """What a query refers to.

    Attributes:
        sql: the query with its placeholders filled in.
        tables: the tables it reads.
        columns: the columns it names, of whichever table; ``None`` if it says ``*``.
        predicate: for ``SELECT count(*) FROM table WHERE predicate`` over one row alone: the predicate.
    """

    sql: str
    tables: frozenset[str]
    columns: frozenset[str] | None
    predicate: str | None


@lru_cache(maxsize=1024)
def parse(query: str, table: str, column: str | None) -> Parsed:
    """Fill in a query's placeholders and look at what it reads.

    Raises:
        BadQuery: if it is not one SELECT.
    """

    def name(found: re.Match[str]) -> str:
        kind = found.group(1)
        if kind in ("column", "property"):
            if column is None:
                raise BadQuery(f"{found.group()} stands for a column, but the rule is about the whole table")
            return quoted(column)
        if kind == "schema":
            raise BadQuery(f"{found.group()} has no meaning here: write ${{table}} alone")
        return quoted(table)

    sql = _PLACEHOLDER.sub(name, query).strip().rstrip(";")
    with connected() as connection:
        row = connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
        assert row is not None
        tree: dict[str, Any] = json.loads(row[0])
        if tree["error"]:
            raise BadQuery(tree.get("error_message", "it is not SQL").replace("\n", " "))
        statements = tree["statements"]
        if len(statements) != 1:
            raise BadQuery(f"it has {len(statements)} statements")
        node = statements[0]["node"]
        own = {entry["key"] for ctes in _nodes(node, "cte_map") for entry in ctes.get("map", [])}
        tables = {item["table_name"] for item in _typed(node, "BASE_TABLE")} - own
        stars = _typed(node, "STAR")
        named = {item["column_names"][-1] for item in _typed(node, "COLUMN_REF")}
        # Without parentheses, now is parsed as if it were a column.
        columns = {name for name in named if name.lower() not in _VOLATILE}
        predicate = _predicate(node, table, sql, connection) if columns == named else None
    return Parsed(sql, frozenset(tables), None if stars else frozenset(columns), predicate)


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def connected() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty in-memory database that reaches nothing outside of it."""
    import duckdb

    with duckdb.connect(config=_SETTINGS) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("set enable_external_access = false")
        yield connection


class RowFilter:
    """Predicates of sql rules over batches of rows, one connection for all of them.

    Its methods raise :class:`BadQuery` where a predicate fails, for example on a value that cannot be cast.

    Args:
        predicates: the predicates; each answers for itself.
        columns: the columns that they read.
    """

    def __init__(self, predicates: Sequence[str], columns: Sequence[str]) -> None:
        import duckdb

        self.predicates = tuple(predicates)
        self.columns = tuple(columns)
        self._connection = duckdb.connect(config=_SETTINGS | {"threads": "1"})
        self._connection.execute("set TimeZone = 'UTC'")
        self._connection.execute("set enable_external_access = false")

    def counts(self, rows: pa.Table) -> list[int]:
        """How many rows each predicate is true for."""
        asked = ", ".join(f"count(*) filter (where {predicate})" for predicate in self.predicates)
        (row,) = self._run(rows, f"select {asked} from rows").to_pylist()
        return list(row.values())

    def true(self, rows: pa.Table, number: int) -> pl.Series:
        """For which rows one predicate is true."""
        answer = self._run(rows, f"select coalesce(({self.predicates[number]}), false) as held from rows")
        held = pl.from_arrow(answer["held"])
        assert isinstance(held, pl.Series)
        return held

    def _run(self, rows: pa.Table, sql: str) -> pa.Table:
        import duckdb

        self._connection.register("rows", rows)
        try:
            return self._connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise BadQuery(str(error).split("\n\n", 1)[0].replace("\n", " ")) from error
        finally:
            self._connection.unregister("rows")


def answer(query: Query, frames: Mapping[str, pl.LazyFrame], needed: Mapping[str, Sequence[str]]) -> Any:  # noqa: ANN401
    """The value that a query gives; a table is read once, batch by batch, and spills if it must.

    Raises:
        BadQuery: if it fails, or gives other than one value.
    """
    import duckdb

    with connected() as connection:
        for name, frame in frames.items():
            _load(connection, name, frame.select(needed[name]))
        try:
            rows = connection.execute(query.sql).fetchmany(2)
        except duckdb.Error as error:
            raise BadQuery(str(error).split("\n\n", 1)[0].replace("\n", " ")) from error
    if len(rows) != 1 or len(rows[0]) != 1:
        shape = f"{len(rows)} rows" if len(rows) != 1 else f"{len(rows[0])} columns"
        raise BadQuery(f"the query must give one value, this one gives {shape}")
    return rows[0][0]


def _load(connection: duckdb.DuckDBPyConnection, name: str, frame: pl.LazyFrame) -> None:
    created = False
    for batch in frame.collect_batches(chunk_size=250_000):
        connection.register("_batch", batch.to_arrow())
        if not created:
            connection.execute(f"create table {quoted(name)} as select * from _batch")
            created = True
        else:
            connection.execute(f"insert into {quoted(name)} select * from _batch")
        connection.unregister("_batch")
    if not created:
        connection.register("_batch", frame.limit(0).collect().to_arrow())
        connection.execute(f"create table {quoted(name)} as select * from _batch")
        connection.unregister("_batch")


def _predicate(
    node: Mapping[str, Any], table: str, sql: str, connection: duckdb.DuckDBPyConnection
) -> str | None:
    """The WHERE of a plain count over one table whose rows decide it each alone."""
    plain = (
        node.get("type") == "SELECT_NODE"
        and not node["modifiers"]
        and not node["cte_map"]["map"]
        and not node["group_expressions"]
        and not any(node[part] for part in ("having", "sample", "qualify"))
        and node["where_clause"]
        and len(node["select_list"]) == 1
        and node["select_list"][0].get("function_name") == "count_star"
        and not node["select_list"][0]["filter"]
        and node["from_table"].get("type") == "BASE_TABLE"
        and node["from_table"]["table_name"] == table
        and not node["from_table"].get("sample")
    )
    if not plain:
        return None
    where = node["where_clause"]
    if any(_classed(where, name) for name in ("SUBQUERY", "WINDOW", "PARAMETER", "LAMBDA", "STAR")):
        return None
    if any(item["function_name"].lower() in _VOLATILE for item in _classed(where, "FUNCTION")):
        return None
    if any(len(item["column_names"]) > 1 for item in _classed(where, "COLUMN_REF")):
        return None
    # Text after WHERE: nothing follows it in such a statement.
    first = min(item["query_location"] for item in _located(where))
    found = re.search(r"\bwhere\b", sql[:first] or sql, re.IGNORECASE)
    places = [
        match.end() for match in re.finditer(r"\bwhere\b", sql, re.IGNORECASE) if match.start() <= first
    ]
    if found is None or not places:
        return None
    text = sql[places[-1] :].strip()
    row = connection.execute(
        "select json_serialize_sql(?)", [f"select count(*) from {quoted(table)} where {text}"]
    ).fetchone()
    assert row is not None
    again: dict[str, Any] = json.loads(row[0])
    same = not again["error"] and _unplaced(again["statements"][0]["node"]["where_clause"]) == _unplaced(
        where
    )
    return text if same else None


def _walk(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _nodes(value: object, key: str) -> Iterator[Mapping[str, Any]]:
    return (item[key] for item in _walk(value) if isinstance(item.get(key), dict))


def _typed(value: object, kind: str) -> list[dict[str, Any]]:
    return [item for item in _walk(value) if item.get("type") == kind]


def _classed(value: object, kind: str) -> list[dict[str, Any]]:
    return [item for item in _walk(value) if item.get("class") == kind]


def _located(value: object) -> list[dict[str, Any]]:
    return [item for item in _walk(value) if isinstance(item.get("query_location"), int)]


def _unplaced(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {key: _unplaced(item) for key, item in value.items() if not key.startswith("query_location")}
    return [_unplaced(item) for item in value] if isinstance(value, list) else value

"""SQL over products with DuckDB: ``select ... from sales.orders join sales.orders.order_lines ...``.

Names are resolved by DuckDB itself: every domain is an attached in-memory catalog, every product a
schema in it, every table a view; a product's default table is also a view of the product's name in the
catalog. So aliases, qualified columns and CTEs mean what they mean in DuckDB. Only names that a
statement refers to are registered, and it can reach nothing else: no files, no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from mesh_assets.errors import QueryRefused, UnknownName
from mesh_assets.lake.image import combine
from mesh_assets.lake.read import Pinned

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": False}
_TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest"})
_RESERVED = frozenset({"memory", "system", "temp"})
_WRITES = frozenset({"INSERT_QUERY_NODE", "UPDATE_QUERY_NODE", "DELETE_QUERY_NODE", "MERGE_QUERY_NODE"})


def sql(text: str, resolve: Callable[[str], Pinned]) -> pa.Table:
    """Run one read-only statement.

    Args:
        text: a SELECT (or VALUES, DESCRIBE, SUMMARIZE, ``from ...``).
        resolve: the table at its cut for ``domain.product`` or ``domain.product.table``, as the
            principal may see it; raises UnknownName.

    Returns:
        The result; timestamps with time zone are in UTC.

    Raises:
        QueryRefused: if the text does not parse, is not one read-only statement, or fails in DuckDB.
        UnknownName: if a table does not exist.
    """
    with duckdb.connect(config=_SETTINGS) as connection:
        names = table_names(text, connection)
        pinned = {name: resolve(".".join(name)) for name in names}
        files = _register(connection, pinned)
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("set allowed_paths = ?", [files])
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            result: pa.Table = connection.sql(text).to_arrow_table()
        except duckdb.CatalogException as error:
            raise UnknownName(_first_line(error), available=[".".join(name) for name in names]) from error
        except duckdb.Error as error:
            raise QueryRefused(_first_line(error)) from error
        return result


def table_names(text: str, connection: duckdb.DuckDBPyConnection | None = None) -> list[tuple[str, ...]]:
    """The products and tables that a statement refers to, each ``(domain, product[, table])``, sorted.

    Raises:
        QueryRefused: as :func:`sql`.
    """
    if connection is None:
        with duckdb.connect(config=_SETTINGS) as own:
            return table_names(text, own)
    row = connection.execute("select json_serialize_sql(?)", [text]).fetchone()
    assert row is not None
    parsed: dict[str, Any] = json.loads(row[0])
    if parsed["error"]:
        raise QueryRefused(
            parsed["error_message"],
            hint="" if parsed.get("error_type") == "parser" else "only statements that read are run",
        )
    statements = parsed["statements"]
    if len(statements) != 1:
        raise QueryRefused(f"one statement is run at a time, not {len(statements)}")
    names: set[tuple[str, ...]] = set()
    for node in _nodes(statements):
        kind = node.get("type")
        if kind in _WRITES:
            raise QueryRefused("products are not written by SQL", hint="only statements that read are run")
        if kind == "TABLE_FUNCTION" and "function" in node:
            function = node["function"].get("function_name", "")
            if function not in _TABLE_FUNCTIONS:
                raise QueryRefused(
                    f"the table function {function} is not available",
                    available=_TABLE_FUNCTIONS,
                    hint="name products as domain.product or domain.product.table",
                )
        if kind == "BASE_TABLE":
            if node.get("at_clause"):
                raise QueryRefused("AT is not available in a statement", hint="pass as_of instead")
            path = tuple(part for part in (*_path(node),) if part)
            if len(path) > 1:
                names.add(path)
    return sorted(names)


def _path(node: dict[str, Any]) -> list[str]:
    return [node.get("catalog_name", ""), node.get("schema_name", ""), node.get("table_name", "")]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - parsed JSON
    """Every object of DuckDB's syntax tree."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _register(connection: duckdb.DuckDBPyConnection, tables: dict[tuple[str, ...], Pinned]) -> list[str]:
    """Make views of all names; returns the files that they read."""
    files: list[str] = []
    catalogs: set[str] = set()
    for number, (path, pinned) in enumerate(tables.items()):
        domain, product, *rest = path
        if domain in _RESERVED:
            raise QueryRefused(
                f"a domain named {domain} cannot be queried", hint="DuckDB uses the name itself"
            )
        if domain not in catalogs:
            connection.execute(f"attach ':memory:' as {_quoted(domain)}")
            catalogs.add(domain)
        if rest:
            connection.execute(f"create schema if not exists {_quoted(domain)}.{_quoted(product)}")
        place = [domain, product, *rest] if rest else [domain, "main", product]
        body, read = _body(connection, pinned, f"mesh_{number}")
        connection.execute(f"create view {'.'.join(map(_quoted, place))} as {body}")
        files.extend(read)
    return files


def _body(connection: duckdb.DuckDBPyConnection, pinned: Pinned, prefix: str) -> tuple[str, list[str]]:
    """The SELECT of a table's view, and the data files that it reads itself."""
    if not _direct(pinned):
        connection.register(prefix, pinned.frame())
        return f"select * from temp.main.{prefix}", []
    shape, found, tail = pinned.shape, pinned.found, pinned.tail
    assert found is not None
    columns = ", ".join(f"s.{_quoted(name)}" for name in shape.columns)
    connection.register(f"{prefix}_empty", tail.log.row_schema.empty_table())
    parts = [f"select {columns} from temp.main.{prefix}_empty s"]
    files: list[str] = []
    if pinned.current is not None and pinned.files and not found.truncated:
        table = pinned.current.table
        base = [table.storage.address(file.path) for file in pinned.files]
        files += base
        connection.register(f"{prefix}_touched", found.touched.to_arrow())
        on = " and ".join(f"s.{_quoted(name)} = t.{_quoted(name)}" for name in shape.key)
        rows = _rows(base, prefix)
        parts.append(f"select {columns} from {rows} s anti join temp.main.{prefix}_touched t on {on}")
    rest = combine(shape, found, tail.rows(), None, sources=pinned.history, roots=pinned.base())
    connection.register(f"{prefix}_tail", rest)
    parts.append(f"select {columns} from temp.main.{prefix}_tail s")
    return " union all ".join(parts), files


def _rows(files: list[str], prefix: str) -> str:
    """A FROM item over data files; columns added after all of them were written are null."""
    listed = ", ".join(_text(file) for file in files)
    read = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    return f"(select * from {read} union all by name select * from temp.main.{prefix}_empty)"


def _direct(pinned: Pinned) -> bool:
    """Whether DuckDB reads the base's files itself; otherwise polars reads them for it, with its filters."""
    if pinned.found is None or pinned.shape.inexact or not pinned.access.unrestricted:
        return False
    return pinned.current is None or len(urlsplit(pinned.current.table.uri).scheme) <= 1


def _first_line(error: duckdb.Error) -> str:
    return str(error).split("\n\n", 1)[0].replace("\n", " ")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"

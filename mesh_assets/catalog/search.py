"""Ranked full-text search over products, tables, columns and changes, with facets.

The index is a SQLite file (FTS5) beside nothing that matters: it is made from the enterprise
catalog's tables, follows them data file by data file, and is made anew whenever it is not trusted.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mesh_assets.catalog.canonical import Canonical
from mesh_assets.catalog.shape import CHANGES, COLUMNS, DATASETS, SHAPES
from mesh_assets.errors import UnknownName
from mesh_assets.names import Layout

KINDS = ("product", "table", "column", "change")
FACETS = ("kind", "domain", "product", "owner", "classification", "tag", "status")
"""By what hits are counted and can be narrowed down."""

_VERSION = 1
_WORD = re.compile(r"[^\W_]+")
# Names count most, then titles; a product comes before what it consists of, changes come last.
_WEIGHTS = (10.0, 6.0, 1.0)
_KIND_FACTORS = {"product": 1.0, "table": 0.8, "column": 0.6, "change": 0.25}
_EXACT_BONUS = 5.0
_TEXTS = ("kind", "name", "title", "summary", "domain", "product", "owner", "classification", "status")

_SCHEMA = f"""
CREATE TABLE place (root TEXT);
CREATE TABLE file (id INTEGER PRIMARY KEY, path TEXT UNIQUE);
CREATE TABLE entry (
    id INTEGER PRIMARY KEY, file INTEGER, {", ".join(f"{name} TEXT" for name in _TEXTS)}, tags TEXT, at TEXT,
    factor REAL
);
CREATE INDEX entry_file ON entry (file);
CREATE VIRTUAL TABLE words USING fts5(
    name, title, body, tokenize = 'porter unicode61 remove_diacritics 2', prefix = '2 3'
);
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True)
class Hit:
    """One thing found.

    Attributes:
        kind: product, table, column or change.
        name: how to ask for it: ``domain.product[.table][.column]``, or ``domain.product@version``.
        summary: what it is, in a sentence.
        at: when a change was made.
        score: more is better.
    """

    kind: str
    name: str
    title: str
    summary: str
    domain: str
    product: str
    owner: str
    classification: str
    status: str
    tags: tuple[str, ...]
    at: datetime | None
    score: float


@dataclass(frozen=True)
class Found:
    """What a search gave.

    Attributes:
        hits: the best ones, best first.
        total: how many there are in all.
        facets: facet -> value -> how many hits have it, most first.
        loose: whether no entry had all words, so that these have some of them.
    """

    hits: tuple[Hit, ...]
    total: int
    facets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    loose: bool = False


class SearchIndex:
    """The index of one enterprise catalog.

    Args:
        path: where it is kept; in memory without one, or where it cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._connection = _opened(path)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> SearchIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def refresh(self, layout: Layout) -> int:
        """Follow the catalog's tables; returns how many data files were taken in."""
        with self._writing() as cursor:
            root = cursor.execute("SELECT root FROM place").fetchone()
            if root is None or root[0] != layout.root:
                for name in ("place", "file", "entry", "words"):
                    cursor.execute(f"DELETE FROM {name}")
                cursor.execute("INSERT INTO place VALUES (?)", (layout.root,))
            held = dict(cursor.execute("SELECT path, id FROM file").fetchall())
            live: dict[str, tuple[Canonical, str]] = {}
            for shape in (DATASETS, COLUMNS, CHANGES):
                table = Canonical(layout.enterprise(shape.name), SHAPES[shape.name])
                for bucket, one in table.buckets().items():
                    live[f"{shape.name}/{one.file.path}"] = table, bucket
            for path in held.keys() - live.keys():
                self._drop(cursor, held[path])
            added = sorted(live.keys() - held.keys())
            for path in added:
                table, bucket = live[path]
                entries = _ENTRIES[table.shape.name](table.read([bucket]).to_pylist())
                self._add(cursor, path, entries)
            return len(added)

    def search(
        self, text: str, *, filters: Mapping[str, str] | None = None, limit: int = 20, offset: int = 0
    ) -> Found:
        """The entries that have all words of a text, or words that begin so; best first.

        Args:
            text: words; without any, all entries that pass the filters.
            filters: facet -> value that hits must have.
            limit: how many hits to give.
            offset: how many to leave out before.

        Raises:
            UnknownName: if a filter is no facet.
        """
        narrowed = dict(filters or {})
        for name in narrowed:
            if name not in FACETS:
                raise UnknownName.of("facet", name, FACETS)
        words = [word.lower() for word in _WORD.findall(text)]
        found = self._search(words, " AND ", narrowed, limit, offset)
        if found.total or len(words) < 2:
            return found
        some = self._search(words, " OR ", narrowed, limit, offset)
        return Found(some.hits, some.total, some.facets, loose=some.total > 0)

    def _search(
        self, words: Sequence[str], join: str, filters: Mapping[str, str], limit: int, offset: int
    ) -> Found:
        match = join.join(f'"{word}"*' for word in words)
        bounds = ", ".join(str(weight) for weight in _WEIGHTS)
        score = f"-bm25(words, {bounds}) * entry.factor" if words else "entry.factor"
        where = [_condition(name) for name in filters]
        values: list[Any] = list(filters.values())
        if words:
            where.insert(0, "words MATCH ?")
            values.insert(0, match)
        source = "words JOIN entry ON entry.id = words.rowid" if words else "entry"
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        # The name itself, or its last part, was asked for.
        exact = " ".join(words)
        bonus = (
            f"CASE WHEN plain(entry.name) = ? OR plain_last(entry.name) = ? THEN {_EXACT_BONUS} ELSE 0 END"
        )
        statement = (
            f"SELECT entry.*, {score} + {bonus} * entry.factor AS score FROM {source} {condition} "
            "ORDER BY score DESC, entry.at DESC, entry.name LIMIT ? OFFSET ?"
        )
        rows = self._rows(statement, [exact, exact, *values, limit, offset])
        counted = f"FROM {source} {condition}"
        facets: dict[str, dict[str, int]] = {}
        for name in FACETS:
            facets[name] = self._count(name, counted, values)
        total = sum(facets["kind"].values())
        return Found(tuple(_hit(row) for row in rows), total, facets)

    def _count(self, facet: str, counted: str, values: list[Any]) -> dict[str, int]:
        value, source = f"entry.{facet}", counted
        if facet == "tag":
            # FROM … WHERE …: what is counted are the tags of what is found.
            head, _, tail = counted.partition(" WHERE ")
            value = "one.value"
            source = f"{head}, json_each(entry.tags) AS one" + (f" WHERE {tail}" if tail else "")
        statement = f"SELECT {value} AS value, count(*) AS number {source} GROUP BY 1 ORDER BY 2 DESC, 1"
        rows = self._rows(statement, values)
        return {str(row["value"]): int(row["number"]) for row in rows if row["value"]}

    def _rows(self, statement: str, values: Iterable[Any]) -> list[sqlite3.Row]:
        with closing(self._connection.execute(statement, list(values))) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    @staticmethod
    def _drop(cursor: sqlite3.Cursor, file: int) -> None:
        cursor.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM entry WHERE file = ?)", (file,))
        cursor.execute("DELETE FROM entry WHERE file = ?", (file,))
        cursor.execute("DELETE FROM file WHERE id = ?", (file,))

    @staticmethod
    def _add(cursor: sqlite3.Cursor, path: str, entries: Iterable[dict[str, Any]]) -> None:
        file = cursor.execute("INSERT INTO file (path) VALUES (?) RETURNING id", (path,)).fetchone()[0]
        (last,) = cursor.execute("SELECT coalesce(max(id), 0) FROM entry").fetchone()
        rows = list(enumerate(entries, last + 1))
        names = (*_TEXTS, "tags", "at")
        marks = ", ".join("?" for _ in range(len(names) + 3))
        cursor.executemany(
            f"INSERT INTO entry (id, file, {', '.join(names)}, factor) VALUES ({marks})",
            [
                (
                    number,
                    file,
                    *(entry.get(name, "") for name in _TEXTS),
                    json.dumps(entry.get("tags", [])),
                    entry.get("at"),
                    _KIND_FACTORS[entry["kind"]],
                )
                for number, entry in rows
            ],
        )
        cursor.executemany(
            "INSERT INTO words (rowid, name, title, body) VALUES (?, ?, ?, ?)",
            [(number, entry["name"], entry.get("title", ""), entry["body"]) for number, entry in rows],
        )


def _opened(path: Path | None) -> sqlite3.Connection:
    """A connection to an index of today's form; one that cannot be used is put aside."""
    for place in (path, path, None):
        try:
            if place is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(place or ":memory:", timeout=30, isolation_level=None)
        except (sqlite3.Error, OSError):
            continue
        try:
            _prepare(connection)
        except sqlite3.Error:
            connection.close()
            if place is not None:
                try:
                    place.unlink(missing_ok=True)
                except OSError:
                    continue
        else:
            return connection
    raise AssertionError("SQLite cannot keep an index in memory")


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.create_function("plain", 1, lambda name: _plain(name), deterministic=True)
    connection.create_function(
        "plain_last", 1, lambda name: _plain(name.rpartition(".")[2]), deterministic=True
    )
    connection.execute("PRAGMA synchronous = OFF")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        connection.execute("SELECT count(*) FROM place").fetchone()
        return
    if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise sqlite3.DatabaseError("an index of another form")
    connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")


def _plain(name: str) -> str:
    return " ".join(word.lower() for word in _WORD.findall(name))


def _condition(facet: str) -> str:
    if facet == "tag":
        return "EXISTS (SELECT 1 FROM json_each(entry.tags) AS tag WHERE tag.value = ?)"
    return f"entry.{facet} = ?"


def _hit(row: sqlite3.Row) -> Hit:
    return Hit(
        kind=row["kind"],
        name=row["name"],
        title=row["title"],
        summary=row["summary"],
        domain=row["domain"],
        product=row["product"],
        owner=row["owner"],
        classification=row["classification"],
        status=row["status"],
        tags=tuple(json.loads(row["tags"])),
        at=datetime.fromisoformat(row["at"]) if row["at"] else None,
        score=round(float(row["score"]), 4),
    )


def _of_datasets(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    products: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        products.setdefault(row["product"], []).append(row)
        owners = row["owners"] or [""]
        yield {
            "kind": "table",
            "name": row["dataset"],
            "title": row["business_name"],
            "summary": row["description"],
            "domain": row["domain"],
            "product": row["product"],
            "owner": owners[0],
            "status": row["status"],
            "tags": row["tags"],
            "body": _body(row["description"], row["tags"], row["key"], row["source_table"]),
        }
    for product, tables in products.items():
        row = tables[0]
        owners = row["owners"] or [""]
        yield {
            "kind": "product",
            "name": product,
            "summary": row["product_description"],
            "domain": row["domain"],
            "product": product,
            "owner": owners[0],
            "status": row["status"],
            "tags": sorted({tag for table in tables for tag in table["tags"]}),
            "body": _body(
                *(row["product_description"], row["usage"], row["limitations"], row["owners"]),
                *(table["tags"] for table in tables),
                *(table["table"] for table in tables),
                *(table["inputs"] for table in tables),
            ),
        }


def _of_columns(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {
            "kind": "column",
            "name": f"{row['dataset']}.{row['column']}",
            "title": row["business_name"],
            "summary": row["description"],
            "domain": row["domain"],
            "product": row["product"],
            "classification": row["classification"] or "",
            "tags": row["tags"],
            "body": _body(row["description"], row["tags"], row["classification"], row["logical_type"]),
        }


def _of_changes(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    ops = {"c": "created", "u": "updated", "d": "deleted", "r": "read", "t": "truncated"}
    for row in rows:
        counts = [f"{number:,} {ops.get(op, op)}" for op, number in row["row_count"] or ()]
        yield {
            "kind": "change",
            "name": f"{row['product']}@{row['version']}",
            "summary": f"{', '.join(counts) or 'nothing changed'}; by {row['actor']}, run {row['run_id']}",
            "domain": row["domain"],
            "product": row["product"],
            "at": row["created_at"].isoformat(),
            "body": _body(row["actor"], row["run_id"], row["hash"], row["contract_hash"], *counts),
        }


_ENTRIES: Mapping[str, Callable[[list[dict[str, Any]]], Iterator[dict[str, Any]]]] = {
    DATASETS.name: _of_datasets,
    COLUMNS.name: _of_columns,
    CHANGES.name: _of_changes,
}


def _body(*parts: Any) -> str:  # noqa: ANN401 - texts and lists of texts
    texts = [text for part in parts for text in (part if isinstance(part, list) else [part])]
    return " ".join(str(text) for text in texts if text)

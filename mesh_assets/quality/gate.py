"""The gate: which rows of a change frame break which row rules, before they are appended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mesh_assets.quality import sql
from mesh_assets.quality.inexact import approximation
from mesh_assets.quality.kind import Incomparable
from mesh_assets.quality.metric import broken
from mesh_assets.quality.predicate import Uncompilable, predicate
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Scope
from mesh_assets.quality.translation import translated

_SETTING = ("c", "u", "r")
_ROW = "_row"


class Previous(Protocol):
    """Gives values that a change left unchanged and did not carry."""

    def __call__(self, rows: pa.Int64Array, columns: Sequence[str]) -> pa.Table:
        """Values of ``columns`` in the image before each of the frame's ``rows``.

        Args:
            rows: row numbers in the change frame (from 0, ascending); no earlier row of the frame
                holds the values.
            columns: the columns asked for.

        Returns:
            One row per asked row, in that order, with these columns, and with ``_exact`` of that image if
            it is known (it may be left out); null where no image is known.
        """
        ...


@dataclass(frozen=True)
class Marks:
    """What a gate found in one change frame.

    Attributes:
        rejected_by: per row the sorted ids of the blocking rules it fails (``list<string>``, null for
            an accepted row); ``None`` if every row is accepted.
        failed: rule id -> rows that fail it, blocking or not; rules that no row fails are left out.
        row_count: rows that were judged: those that set an image.
        broken: rule id -> why a rule could not be asked (a column of another type, a failing query);
            its rows count as passing.
    """

    rejected_by: pa.Array | None
    failed: Mapping[str, int] = field(default_factory=dict)
    row_count: int = 0
    broken: Mapping[str, str] = field(default_factory=dict)


class Gate:
    """The row rules of one table, ready to be asked.

    Args:
        rules: rules of one table; only those of row scope are used.
        key: the names of the key columns, which tell what a masked value was before.
    """

    def __init__(self, rules: Sequence[Rule], key: Sequence[str]) -> None:
        self._rules = tuple(rule for rule in rules if rule.scope is Scope.ROW and not rule.slow)
        self._key = tuple(key)
        self._columns = tuple(dict.fromkeys(name for rule in self._rules for name in rule.columns))
        self._compiled: tuple[dict[str, pl.DataType], _Compiled] | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that are asked."""
        return self._rules

    @property
    def columns(self) -> tuple[str, ...]:
        """The row columns that the rules read."""
        return self._columns

    def mark(self, frame: pa.Table, previous: Previous | None = None) -> Marks:
        """Which rows fail: deletes and truncates never do.

        Args:
            frame: changes in order: the row's columns, ``_op`` and, where there are any, ``_unchanged``,
                ``_before`` and ``_exact``. A column that a rule reads and the frame lacks counts as null.
            previous: asked for masked values that rules read and the frame does not hold; without it
                no rule fails a row for a value that it did not carry.
        """
        if not self._rules or not frame.num_rows:
            return Marks(None)
        judged = _judged(frame["_op"])
        rows, exact, unknown = self._filled(frame, previous)
        compiled = self._for(rows)
        counts, fails, broken = compiled.ask(rows, judged)
        if exact is not None:
            counts, fails = self._inexact(rows, exact, judged, fails)
        if unknown:
            _forgive(fails, counts, self._rules, unknown)
        failed = {id: count for id, count in counts.items() if count}
        return Marks(
            _rejected(fails, [rule for rule in self._rules if rule.blocking], frame.num_rows),
            failed,
            frame.num_rows if judged is None else int(judged.sum()),
            broken,
        )

    def _for(self, rows: pl.DataFrame) -> _Compiled:
        schema = dict(rows.schema)
        if self._compiled is None or self._compiled[0] != schema:
            self._compiled = (schema, _Compiled(self._rules, schema))
        return self._compiled[1]

    # -- values that the frame's columns do not hold themselves ---------------------------------------

    def _filled(
        self, frame: pa.Table, previous: Previous | None
    ) -> tuple[pl.DataFrame, list[dict[str, str] | None] | None, dict[str, pl.Series]]:
        """The columns that rules read with masked values filled in, their exact texts, and what is unknown.

        The texts are ``None`` if no row has any; unknown are, per column, the rows whose value is not known.
        """
        held = [name for name in self._columns if name in frame.column_names]
        rows = _polars(frame.select(held))
        absent = [name for name in self._columns if name not in frame.column_names]
        rows = rows.with_columns(pl.lit(None).alias(name) for name in absent) if absent else rows
        exact = _texts(frame, self._columns)
        if "_unchanged" not in frame.column_names or frame["_unchanged"].null_count == frame.num_rows:
            return rows, exact, {}
        masks = _masks(frame["_unchanged"], held)
        if not masks:
            return rows, exact, {}
        return self._unmasked(frame, rows, exact, masks, previous)

    def _unmasked(
        self,
        frame: pa.Table,
        rows: pl.DataFrame,
        exact: list[dict[str, str] | None] | None,
        masks: Mapping[str, npt.NDArray[np.bool_]],
        previous: Previous | None,
    ) -> tuple[pl.DataFrame, list[dict[str, str] | None] | None, dict[str, pl.Series]]:
        wanted: dict[str, npt.NDArray[np.int64]] = {}
        sources = _sources(frame, self._key, masks)
        for name, source in sources.items():
            found = masks[name] & (source >= 0)
            at = np.flatnonzero(found)
            if len(at):
                take = np.arange(len(source))
                take[at] = source[at]
                rows = rows.with_columns(rows[name].gather(take).alias(name))
                exact = _carry(exact, name, at, source[at])
            missing = np.flatnonzero(masks[name] & (source < 0))
            if len(missing):
                wanted[name] = missing
        if not wanted:
            return rows, exact, {}
        unknown: dict[str, pl.Series] = {}
        if previous is None:
            return rows, exact, {name: _flags(frame.num_rows, at) for name, at in wanted.items()}
        asked = np.unique(np.concatenate(list(wanted.values())))
        given = previous(pa.array(asked, pa.int64()), list(wanted))
        images = _polars(given.select(list(wanted)))
        texts = _texts(given, list(wanted))
        for name, at in wanted.items():
            place = np.searchsorted(asked, at)
            values = images[name].gather(place).cast(rows.schema[name])
            rows = rows.with_columns(rows[name].scatter(at, values).alias(name))
            if texts is not None:
                exact = exact if exact is not None else [None] * frame.num_rows
                for row, source_row in zip(at.tolist(), place.tolist(), strict=True):
                    if text := (texts[source_row] or {}).get(name):
                        exact[row] = {**(exact[row] or {}), name: text}
        # A later row of the same key that is masked too was asked for as well: nothing stays open.
        return rows, exact, unknown

    def _inexact(
        self,
        rows: pl.DataFrame,
        exact: list[dict[str, str] | None],
        judged: pl.Series | None,
        fails: dict[str, pl.Series],
    ) -> tuple[dict[str, int], dict[str, pl.Series]]:
        """Judge rows again whose values stand in ``_exact``: infinities, numbers too wide."""
        at = [row for row, texts in enumerate(exact) if texts]
        some = rows[at]
        names = dict.fromkeys(name for row in at for name in exact[row] or {})
        for name in names:
            texts = [(exact[row] or {}).get(name) for row in at]
            told = pl.lit(pl.Series(texts, dtype=pl.String))
            some = some.with_columns(approximation(name, some.schema[name], told).alias(name))
        own = None if judged is None else judged.gather(at)
        _, again, _ = _Compiled(self._rules, dict(some.schema)).ask(some, own)
        fails = dict(fails)
        for rule in self._rules:
            now = again.get(rule.id)
            before = fails.get(rule.id)
            if now is None and before is None:
                continue
            mask = before if before is not None else pl.repeat(False, rows.height, eager=True)
            fails[rule.id] = mask.scatter(at, now if now is not None else [False] * len(at))
        fails = {id: mask for id, mask in fails.items() if mask.any()}
        return {id: int(mask.sum()) for id, mask in fails.items()}, fails


class _Compiled:
    """Rules compiled for the types of one schema."""

    def __init__(self, rules: Sequence[Rule], schema: Mapping[str, pl.DataType]) -> None:
        self.broken: dict[str, str] = {}
        self._expressions: dict[str, pl.Expr] = {}
        self._queries: list[Rule] = []
        for rule in rules:
            try:
                if (expression := _expression(rule, schema)) is not None:
                    self._expressions[rule.id] = expression
                else:
                    self._queries.append(rule)
            except (Incomparable, Uncompilable, KeyError):
                kinds = ", ".join(f"{name} ({schema.get(name)})" for name in rule.columns)
                self.broken[rule.id] = f"the rule does not fit the column {kinds}"
        self._filter: sql.RowFilter | None = None
        if self._queries:
            columns = list(dict.fromkeys(name for rule in self._queries for name in rule.columns))
            predicates = [_predicate(rule) for rule in self._queries]
            self._filter = sql.RowFilter(predicates, columns)

    def ask(
        self, rows: pl.DataFrame, judged: pl.Series | None
    ) -> tuple[dict[str, int], dict[str, pl.Series], dict[str, str]]:
        """How many rows fail each rule, which, and why rules cannot say; those that pass are left out."""
        counts: dict[str, int] = {}
        fails: dict[str, pl.Series] = {}
        masks: dict[str, pl.Series] = {}
        if self._expressions:
            named = list(self._expressions)
            found = rows.select(self._expressions[id].alias(f"f{place}") for place, id in enumerate(named))
            masks = {id: found[f"f{place}"] for place, id in enumerate(named)}
        answers, failing = self._asked(rows)
        masks |= answers
        for id, mask in masks.items():
            if not mask.any():
                continue
            mask = mask if judged is None else mask & judged
            if count := int(mask.sum()):
                counts[id], fails[id] = count, mask
        return counts, fails, self.broken | failing

    def _asked(self, rows: pl.DataFrame) -> tuple[dict[str, pl.Series], dict[str, str]]:
        """What DuckDB answers, and why it cannot answer some (a value that it cannot cast, for example)."""
        asked = self._filter
        if asked is None:
            return {}, {}
        table = rows.select(asked.columns).to_arrow()
        failing: dict[str, str] = {}
        answers: dict[str, pl.Series] = {}
        counts: list[int | None] = [None] * len(self._queries)
        with suppress(sql.BadQuery):
            counts = list(asked.counts(table))
        for number, (rule, count) in enumerate(zip(self._queries, counts, strict=True)):
            if count == 0:
                continue
            try:
                answers[rule.id] = asked.true(table, number)
            except sql.BadQuery as error:
                failing[rule.id] = str(error)
        return answers, failing


def _expression(rule: Rule, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    """True where a row fails the rule; ``None`` for a query that only DuckDB can answer."""
    match rule.check:
        case Expectation() as expectation:
            found = predicate(expectation, schema)
            if found is None or not found.local:
                raise Uncompilable
            return found.unexpected
        case Metric() as metric:
            return broken(metric, schema)
        case Query(predicate=str(text)):
            return translated(text, schema)
    raise Uncompilable


def _predicate(rule: Rule) -> str:
    assert isinstance(rule.check, Query)
    assert rule.check.predicate is not None
    return rule.check.predicate


def _judged(ops: pa.ChunkedArray) -> pl.Series | None:
    """Which rows set an image; ``None`` if all do."""
    series = pl.Series(ops)
    judged = series.is_in(_SETTING)
    return None if judged.all() else judged


def _polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _flags(count: int, at: npt.NDArray[np.int64]) -> pl.Series:
    flags = np.zeros(count, dtype=bool)
    flags[at] = True
    return pl.Series(flags)


def _masks(unchanged: pa.ChunkedArray, columns: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each column that some row masks, which rows do."""
    lists = pl.Series(unchanged)
    masks = {name: lists.list.contains(name).fill_null(False).to_numpy() for name in columns}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _texts(frame: pa.Table, columns: Sequence[str]) -> list[dict[str, str] | None] | None:
    """Per row the exact texts of values that these columns do not hold; ``None`` if there are none."""
    if "_exact" not in frame.column_names or frame["_exact"].null_count == frame.num_rows:
        return None
    wanted = set(columns)
    rows: list[dict[str, str] | None] = [None] * frame.num_rows
    found = False
    for number in np.flatnonzero(frame["_exact"].is_valid().to_numpy()).tolist():
        entries = frame["_exact"][number].as_py()
        texts = {name: text for name, text in entries if name in wanted and text is not None}
        if texts:
            rows[number], found = texts, True
    return rows if found else None


def _carry(
    exact: list[dict[str, str] | None] | None,
    name: str,
    at: npt.NDArray[np.int64],
    source: npt.NDArray[np.int64],
) -> list[dict[str, str] | None] | None:
    """The text goes where its value goes."""
    if exact is None:
        return None
    carried = list(exact)
    for row, origin in zip(at.tolist(), source.tolist(), strict=True):
        if text := (exact[origin] or {}).get(name):
            carried[row] = {**(carried[row] or {}), name: text}
    return carried


def _sources(
    frame: pa.Table, key: Sequence[str], masks: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, npt.NDArray[np.int64]]:
    """For each masked column and row the earlier row of the frame that holds its value; -1 if none does.

    Only rows of keys that have a masked row are looked at: those are few, masked values being large.
    """
    count = frame.num_rows
    sources = {name: np.full(count, -1, dtype=np.int64) for name in masks}
    masked = np.logical_or.reduce(list(masks.values()))
    if not key:
        return sources
    ops = frame["_op"].to_pylist()
    keys = list(zip(*(frame[name].to_pylist() for name in key), strict=True))
    for row, texts in enumerate(_texts(frame, key) or ()):
        if texts:
            # Where a key's value does not fit its column, its exact text tells keys apart.
            keys[row] = tuple(texts.get(name, value) for name, value in zip(key, keys[row], strict=True))
    before = _old_keys(frame, key, masked)
    wanted = {keys[row] for row in np.flatnonzero(masked).tolist()} | set(before.values())
    latest: dict[tuple[Any, ...], dict[str, int]] = {}
    removed: dict[tuple[Any, ...], dict[str, int]] = {}
    for row, op in enumerate(ops):
        if op == "t":
            latest.clear()
            removed.clear()
            continue
        at = keys[row]
        if at not in wanted:
            continue
        if op == "d":
            # A move is the old key's delete and then the new key's insert: the image is still asked for.
            removed[at] = latest.pop(at, {})
            continue
        image = latest.get(at, {})
        if row in before:
            image = removed.get(before[row], {}) or latest.get(before[row], {})
        now = dict.fromkeys(masks, row)
        for name, mask in masks.items():
            if mask[row]:
                now[name] = image.get(name, -1)
                sources[name][row] = now[name]
        latest[at] = now
    return sources


def _old_keys(
    frame: pa.Table, key: Sequence[str], masked: npt.NDArray[np.bool_]
) -> dict[int, tuple[Any, ...]]:
    """The old key of each masked row that is the second half of a key move."""
    if "_before" not in frame.column_names or frame["_before"].null_count == frame.num_rows:
        return {}
    ops, befores, prefixed = frame["_op"], frame["_before"], [f"_before.{name}" for name in key]
    texts = _texts(frame, prefixed) or [None] * frame.num_rows
    found: dict[int, tuple[Any, ...]] = {}
    for row in np.flatnonzero(masked & befores.is_valid().to_numpy()).tolist():
        if ops[row].as_py() == "c":
            image = befores[row].as_py()
            told = texts[row] or {}
            found[row] = tuple(told.get(f"_before.{name}", image.get(name)) for name in key)
    return found


def _forgive(
    fails: dict[str, pl.Series],
    counts: dict[str, int],
    rules: Sequence[Rule],
    unknown: Mapping[str, pl.Series],
) -> None:
    """No rule fails a row for a value that nobody knows."""
    for rule in rules:
        for name in rule.columns:
            if name in unknown and rule.id in fails:
                fails[rule.id] = fails[rule.id] & ~unknown[name]
                counts[rule.id] = int(fails[rule.id].sum())


def _rejected(fails: Mapping[str, pl.Series], blocking: Sequence[Rule], count: int) -> pa.Array | None:
    ids = sorted(rule.id for rule in blocking if rule.id in fails)
    if not ids:
        return None
    masks = [fails[id] for id in ids]
    if not any(mask.any() for mask in masks):
        return None
    # A list per row: how many rules it fails, and their ids row by row.
    matrix = np.stack([mask.to_numpy() for mask in masks], axis=1)
    per_row = matrix.sum(axis=1)
    offsets = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(per_row, out=offsets[1:])
    values = pa.array(np.array(ids, dtype=object)[np.nonzero(matrix)[1]], pa.string())
    validity = pa.array(per_row == 0)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=validity)


def total(marks: Sequence[Marks]) -> Counter[str]:
    """How many rows failed each rule over several frames."""
    counts: Counter[str] = Counter()
    for found in marks:
        counts.update(found.failed)
    return counts

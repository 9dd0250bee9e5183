"""Evaluates rules over a whole table: what compiles in one pass, the rest where it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from mesh_assets.quality import slow, sql
from mesh_assets.quality.inexact import EXACT, approached
from mesh_assets.quality.kind import Incomparable, kind_of
from mesh_assets.quality.measure import ROWS, Measure, Verdict, measure, row_count
from mesh_assets.quality.metric import measure_metric
from mesh_assets.quality.predicate import Predicate, Uncompilable, predicate
from mesh_assets.quality.result import (
    EXAMPLE_COUNT,
    Examples,
    Outcome,
    errored,
    outcome,
    predicate_verdict,
    reported,
    rows_verdict,
    skipped,
)
from mesh_assets.quality.rule import Expectation, Metric, Query, Rule, Ruleset, Skipped
from mesh_assets.quality.threshold import holds
from mesh_assets.quality.translation import translated
from mesh_assets.quality.uniqueness import Uniqueness, uniqueness

_ROW = "_row"
_BATCH_ROWS = 250_000


@dataclass
class _Plan:
    """What one select over the table has to compute, and who waits for it."""

    needs: dict[str, pl.Expr] = field(default_factory=row_count)
    measures: list[tuple[Rule, Measure]] = field(default_factory=list)
    predicates: list[tuple[Rule, Predicate]] = field(default_factory=list)
    uniques: list[tuple[Rule, Uniqueness]] = field(default_factory=list)
    slow: list[Rule] = field(default_factory=list)
    queries: list[Rule] = field(default_factory=list)

    def considered(self, found: Predicate | Uniqueness) -> str:
        """The name of the count of rows that such an expectation considers."""
        if found.considered is None:
            return ROWS
        name = f"present:{found.columns[0]}" if found.form == "column" else str(found.considered)
        self.needs.setdefault(name, found.considered.sum())
        return name


def evaluate(
    rules: Ruleset | Sequence[Rule],
    frame: pl.LazyFrame,
    *,
    others: Mapping[str, pl.LazyFrame] | None = None,
    slow_lane: bool = True,
) -> list[Outcome]:
    """Evaluate rules of one table over its rows; outcomes are in the order of the rules.

    Args:
        rules: the rules of one table.
        frame: the table's rows. Columns that start with ``_`` are the lake's own and not looked at, except
            ``_exact``: values that stand there (infinities, numbers too wide) are judged as the gate does.
        others: further tables of the product, which its sql rules may read.
        slow_lane: whether to run Great Expectations for what does not compile; else it is skipped.
    """
    asked = tuple(rules.rules if isinstance(rules, Ruleset) else rules)
    whole = frame.collect_schema()
    schema = {name: dtype for name, dtype in whole.items() if not name.startswith("_")}
    frame = approached(frame, schema).select(list(schema)) if EXACT in whole else frame.select(list(schema))
    schema = dict(frame.collect_schema())
    plan = _Plan()
    done: dict[str, Outcome] = {}
    for rule in asked:
        try:
            _assign(rule, plan, schema, done)
        except KeyError as error:
            available = ", ".join(schema)
            done[rule.id] = errored(rule, f"there is no column {error.args[0]!r}; available: {available}")
        except Incomparable:
            kinds = ", ".join(f"{name} ({schema.get(name)})" for name in rule.columns)
            done[rule.id] = errored(rule, f"the rule's arguments do not fit its column {kinds}")
    _fast(plan, frame, schema, done)
    _queries(plan.queries, {**(others or {}), **{rule.table: frame for rule in asked}}, schema, done)
    if plan.slow and slow_lane:
        for rule, validation in zip(plan.slow, slow.validate(plan.slow, frame), strict=True):
            done[rule.id] = reported(rule, validation)
    for rule in plan.slow:
        done.setdefault(rule.id, skipped(rule, "it needs Great Expectations itself, which was not asked for"))
    return [done[rule.id] for rule in asked]


def _assign(rule: Rule, plan: _Plan, schema: Mapping[str, pl.DataType], done: dict[str, Outcome]) -> None:
    match rule.check:
        case Skipped(reason):
            done[rule.id] = skipped(rule, reason)
        case Query() as query:
            if (aggregated := _counted(query, schema)) is not None:
                plan.measures.append((rule, aggregated))
            else:
                plan.queries.append(rule)
        case Metric() as metric:
            try:
                plan.measures.append((rule, measure_metric(metric, schema)))
            except Uncompilable:
                done[rule.id] = errored(rule, "the pattern cannot be expressed here exactly")
        case Expectation() as expectation:
            try:
                _expectation(rule, expectation, plan, schema)
            except Uncompilable:
                plan.slow.append(rule)


def _counted(query: Query, schema: Mapping[str, pl.DataType]) -> Measure | None:
    """A query about single rows as one more aggregation, if it can be said so."""
    if query.predicate is None or (found := translated(query.predicate, schema)) is None:
        return None
    key = f"query:{query.predicate}"
    return Measure(
        row_count() | {key: found.sum()}, lambda values: _count_verdict(query, values[key], values[ROWS])
    )


def _count_verdict(query: Query, count: int, rows: int) -> Verdict:
    result = {
        "observed_value": count,
        "element_count": rows,
        "unexpected_count": count,
        "unexpected_percent": count / rows * 100 if rows else None,
    }
    return Verdict(holds(count, query.operator, query.threshold), result)


def _expectation(
    rule: Rule, expectation: Expectation, plan: _Plan, schema: Mapping[str, pl.DataType]
) -> None:
    if (found := predicate(expectation, schema)) is not None:
        plan.predicates.append((rule, found))
    elif (aggregated := measure(expectation, schema)) is not None:
        plan.measures.append((rule, aggregated))
    elif (unique := uniqueness(expectation, schema)) is not None:
        plan.uniques.append((rule, unique))
    else:
        raise Uncompilable


def _fast(
    plan: _Plan, frame: pl.LazyFrame, schema: Mapping[str, pl.DataType], done: dict[str, Outcome]
) -> None:
    for _, measured in plan.measures:
        plan.needs.update(measured.needs)
    for rule, found in plan.predicates:
        plan.considered(found)
        plan.needs[f"unexpected:{rule.id}"] = found.unexpected.sum()
    for _, unique in plan.uniques:
        plan.considered(unique)
        if unique.form == "column":
            (name,) = unique.columns
            plan.needs[f"distinct:{name}"] = _plain(name, schema).n_unique()
    values = _values(plan.needs, frame)
    for rule, measured in plan.measures:
        done[rule.id] = outcome(rule, measured.judge(values))
    repeats = _repeats(plan, frame, values)
    examples = _examples(plan, frame, values, repeats)
    for rule, found in plan.predicates:
        kinds = [kind_of(schema[name]) for name in found.columns]
        verdict = predicate_verdict(
            found, values[ROWS], values[plan.considered(found)], values[f"unexpected:{rule.id}"],
            examples.get(rule.id, Examples()), kinds,
        )  # fmt: skip
        done[rule.id] = outcome(rule, verdict)
    for rule, unique in plan.uniques:
        kinds = [kind_of(schema[name]) for name in unique.columns]
        verdict = rows_verdict(
            unique.form, unique.mostly, values[ROWS], values[plan.considered(unique)],
            repeats.get(rule.id, 0), examples.get(rule.id, Examples()), unique.columns, kinds,
        )  # fmt: skip
        done[rule.id] = outcome(rule, verdict)


def _plain(name: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    from mesh_assets.quality.kind import plain

    return plain(name, schema[name])


def _values(needs: Mapping[str, pl.Expr], frame: pl.LazyFrame) -> dict[str, Any]:
    """All aggregations in one pass."""
    names = list(needs)
    selected = frame.select(needs[name].alias(f"a{number}") for number, name in enumerate(names))
    row = selected.collect(engine="streaming")
    values: dict[str, Any] = {}
    for number, name in enumerate(names):
        value = row.item(0, f"a{number}")
        values[name] = value.to_list() if isinstance(value, pl.Series) else value
    return values


def _repeats(plan: _Plan, frame: pl.LazyFrame, values: Mapping[str, Any]) -> dict[str, int]:
    """How many rows are not alone, for each uniqueness that the distinct count did not settle."""
    open_rules: list[str] = []
    counts: list[pl.LazyFrame] = []
    for rule, unique in plan.uniques:
        if unique.form == "column":
            name = unique.columns[0]
            present = values[plan.considered(unique)]
            distinct = values[f"distinct:{name}"] - (present < values[ROWS])
            if distinct == present:
                continue
        open_rules.append(rule.id)
        counts.append(unique.count(frame))
    collected = pl.collect_all(counts, engine="streaming") if counts else []
    return {id: found.item() or 0 for id, found in zip(open_rules, collected, strict=True)}


def _examples(
    plan: _Plan, frame: pl.LazyFrame, values: Mapping[str, Any], repeats: Mapping[str, int]
) -> dict[str, Examples]:
    """The first rows that break each rule; only rules that some row breaks are asked for."""
    ids: list[str] = []
    asked: list[pl.LazyFrame] = []
    numbered = frame.with_row_index(_ROW)
    for rule, found in plan.predicates:
        if values[f"unexpected:{rule.id}"]:
            ids.append(rule.id)
            columns = [pl.col(name).alias(f"v{place}") for place, name in enumerate(found.columns)]
            asked.append(numbered.filter(found.unexpected).select(_ROW, *columns).head(EXAMPLE_COUNT))
    for rule, unique in plan.uniques:
        if repeats.get(rule.id):
            ids.append(rule.id)
            asked.append(unique.examples(frame, EXAMPLE_COUNT))
    collected = pl.collect_all(asked, engine="streaming") if asked else []
    return {
        id: Examples(rows[_ROW].to_list(), _nan_as_null(rows.drop(_ROW)).rows())
        for id, rows in zip(ids, collected, strict=True)
    }


def _nan_as_null(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.selectors.float().fill_nan(None))


def _queries(
    rules: Sequence[Rule],
    frames: Mapping[str, pl.LazyFrame],
    schema: Mapping[str, pl.DataType],
    done: dict[str, Outcome],
) -> None:
    row_wise = [
        (rule, rule.check) for rule in rules if isinstance(rule.check, Query) and rule.check.predicate
    ]
    for rule, _ in row_wise:
        for name in rule.columns:
            if name not in schema:
                available = ", ".join(schema)
                done[rule.id] = errored(rule, f"there is no column {name!r}; available: {available}")
    _row_wise([(rule, query) for rule, query in row_wise if rule.id not in done], frames, done)
    for rule in rules:
        if rule.id in done:
            continue
        query = rule.check
        assert isinstance(query, Query)
        try:
            verdict = _query(query, rule, frames)
        except (sql.BadQuery, pl.exceptions.PolarsError) as error:
            done[rule.id] = errored(rule, str(error))
        else:
            done[rule.id] = outcome(rule, verdict)


def _row_wise(
    rules: Sequence[tuple[Rule, Query]], frames: Mapping[str, pl.LazyFrame], done: dict[str, Outcome]
) -> None:
    """Predicates of all sql rules about single rows in one pass, batch by batch."""
    if not rules:
        return
    columns = sorted({name for rule, _ in rules for name in rule.columns})
    row_filter = sql.RowFilter([query.predicate or "false" for _, query in rules], columns)
    totals = [0] * len(rules)
    rows = 0
    try:
        for batch in frames[rules[0][0].table].select(columns).collect_batches(chunk_size=_BATCH_ROWS):
            totals = [sum(pair) for pair in zip(totals, row_filter.counts(batch.to_arrow()), strict=True)]
            rows += batch.height
    except sql.BadQuery as error:
        for rule, _ in rules:
            done[rule.id] = errored(rule, str(error))
        return
    for (rule, query), count in zip(rules, totals, strict=True):
        done[rule.id] = outcome(rule, _count_verdict(query, count, rows))


def _query(query: Query, rule: Rule, frames: Mapping[str, pl.LazyFrame]) -> Verdict:
    parsed = sql.parse(query.sql, rule.table, None)
    read: dict[str, pl.LazyFrame] = {}
    needed: dict[str, list[str]] = {}
    for name in parsed.tables or {rule.table}:
        if name not in frames:
            raise sql.BadQuery(f"there is no table {name!r}; available: {', '.join(sorted(frames))}")
        read[name] = frames[name]
        names = [column for column in frames[name].collect_schema() if not column.startswith("_")]
        mentioned = [column for column in names if parsed.columns is None or column in parsed.columns]
        # Rows are counted even where no column is named.
        needed[name] = mentioned or names[:1]
    value = sql.answer(query, read, needed)
    return Verdict(holds(value, query.operator, query.threshold), {"observed_value": value})

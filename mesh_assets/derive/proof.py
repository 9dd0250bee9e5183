"""Whether a transform may be computed in parts: tried out on made-up inputs.

``transform(part of the inputs)`` has to be the same part of ``transform(inputs)``. Made-up rows have few
values in each column, so that everything joins, groups and collides with everything.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa

from mesh_assets.contract.arrow import arrow_type
from mesh_assets.contract.definition import EXACT_SUFFIX
from mesh_assets.contract.model import ColumnContract, TableContract
from mesh_assets.derive.affected import Paths
from mesh_assets.derive.difference import same_rows
from mesh_assets.derive.generation import row_schema
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.derive.transform import Transformer
from mesh_assets.lake.shape import Shape, polars_schema
from mesh_assets.lake.view import chosen

_ROWS = 60
_DOMAIN = 12
_NULL_SHARE = 0.15
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Disproof:
    """A part that comes out another than in the whole.

    Attributes:
        table: of the output.
        unit: the values whose part was computed.
        rows: what differs: the key, ``_op``, ``_new_…`` in the part and ``_old_…`` in the whole.
        seed: makes the same inputs again.
    """

    table: str
    unit: pl.DataFrame
    rows: pl.DataFrame
    seed: int


@dataclass(frozen=True)
class _MadeUp:
    """Rows in memory, read like a view."""

    frame: pl.DataFrame
    shape: Shape
    exact: tuple[str, ...]

    def rows(self) -> pl.LazyFrame:
        # None of the values is outside of its type.
        texts = [pl.lit(None, pl.String).alias(name + EXACT_SUFFIX) for name in self.exact]
        return self.frame.lazy().with_columns(texts)

    def holding(self, values: pl.DataFrame) -> pl.LazyFrame:
        kinds = {name: self.shape.columns[name] for name in values.columns}
        return chosen(self.rows(), values.cast(kinds).drop_nulls().unique())  # type: ignore[arg-type]


def disprove(
    plan: DerivePlan,
    tables: Mapping[str, TableContract],
    transformer: Transformer,
    *,
    seed: int,
    row_count: int = _ROWS,
) -> Disproof | None:
    """Look for a part that differs from the whole; None if none was found with this seed.

    Args:
        plan: a product with a unit (:attr:`DerivePlan.unit`).
        tables: the contract of each input's table, by the input's name.
        transformer: runs the product's function.
        seed: of the made-up rows.
        row_count: how many an input has, at most.

    Raises:
        TransformError: if the function fails on such rows.
    """
    chance = random.Random(seed)
    rows = {one.name: _made_up(tables[one.name], one.exact, chance, row_count) for one in plan.inputs}
    shapes = {
        target.table: Shape(polars_schema(row_schema(plan.product, target.contract)), target.key)
        for target in plan.targets
        if target.contract is not None
    }
    inputs = {name: one.rows() for name, one in rows.items()}
    with transformer.run(plan, shapes, inputs) as whole:
        first = next(iter(whole.tables.values()))
        units = first.select(plan.unit).unique().collect().sort(plan.unit)
        if units.is_empty():
            return None
        unit = units.sample(chance.randint(1, max(1, units.height // 2)), seed=seed)
        parts = Paths(plan).parts(unit, rows)
        with transformer.run(plan, shapes, parts, unit) as part:
            for name, shape in shapes.items():
                unlike = same_rows(shape, part.tables[name], chosen(whole.tables[name], unit))
                if unlike.height:
                    return Disproof(name, unit, unlike, seed)
    return None


def _made_up(table: TableContract, exact: tuple[str, ...], chance: random.Random, row_count: int) -> _MadeUp:
    columns = {column.name: _values(column, chance, row_count) for column in table.columns}
    kinds = {column.name: arrow_type(column) or pa.string() for column in table.columns}
    rows = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    frame = pl.DataFrame(pl.from_arrow(rows)).unique(table.key, keep="first", maintain_order=True)
    return _MadeUp(frame, Shape(frame.schema, table.key), exact)


def _values(column: ColumnContract, chance: random.Random, count: int) -> list[Any]:
    kind = arrow_type(column) or pa.string()
    nulls = 0.0 if column.required or column.key else _NULL_SHARE
    return [None if chance.random() < nulls else _value(column, kind, chance) for _ in range(count)]


def _value(column: ColumnContract, kind: pa.DataType, chance: random.Random) -> Any:  # noqa: ANN401 - any kind
    number = chance.randrange(_DOMAIN)
    said = [*column.values, *column.examples]
    if pa.types.is_list(kind):
        return [_value(column, kind.value_type, chance) for _ in range(number % 3)]
    if pa.types.is_string(kind):
        texts = [text for text in said if isinstance(text, str)]
        return chance.choice(texts) if texts else f"{column.name} {number}"
    if pa.types.is_boolean(kind):
        return number % 2 == 0
    if pa.types.is_date(kind):
        return date(2026, 1, 1) + timedelta(days=number)
    if pa.types.is_timestamp(kind):
        moment = _BEGAN + timedelta(hours=11 * number)
        return moment if kind.tz else moment.replace(tzinfo=None)
    if pa.types.is_decimal(kind):
        return (Decimal(number - 3) / 2).quantize(Decimal(1).scaleb(-kind.scale))
    if pa.types.is_binary(kind):
        return bytes([number])
    return float(number) / 4 if pa.types.is_floating(kind) else number

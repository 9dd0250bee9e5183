"""Which part of an output the changes of its inputs affect, and which part of the inputs makes it.

Key paths say which rows of an input belong to which rows of the output: an input's columns are equal to
columns of the output's key, or its rows belong to rows of another input, which has such a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import polars as pl

from mesh_assets.derive.plan import DerivePlan, Subscription
from mesh_assets.lake.between import Between
from mesh_assets.lake.shape import Shape


class Rows(Protocol):
    """The rows of an input, to be read in parts: a :class:`~mesh_assets.lake.view.View`, for one."""

    @property
    def shape(self) -> Shape:
        """What they look like."""

    def holding(self, values: pl.DataFrame) -> pl.LazyFrame:
        """The rows whose columns have one of these combinations of values."""


class Whole(Protocol):
    """All rows of an input, too."""

    def rows(self) -> pl.LazyFrame:
        """All of them."""


class Paths:
    """The key paths of one product.

    Args:
        plan: a product with a unit (:attr:`DerivePlan.unit`).
    """

    def __init__(self, plan: DerivePlan) -> None:
        self._unit = plan.unit
        self._inputs = {one.name: one for one in plan.inputs}

    def affected(
        self,
        betweens: Mapping[str, Between],
        earlier: Mapping[str, Rows],
        later: Mapping[str, Rows],
    ) -> pl.DataFrame:
        """The values of the unit's columns whose rows may be others now, each combination once.

        Args:
            betweens: what changed, by input; none of them truncated.
            earlier, later: all inputs at both cuts.
        """
        found = [pl.DataFrame(schema=self._kinds(later))]
        for name, change in betweens.items():
            if change.empty:
                continue
            one = self._inputs[name]
            values = change.images(self._own_columns(one))
            cuts = (earlier, later) if one.through else (later,)
            found.extend(self._reached(one, values, views) for views in cuts)
        kinds = found[0].schema
        return pl.concat([part.cast(kinds) for part in found]).unique().drop_nulls()

    def parts(self, unit: pl.DataFrame, views: Mapping[str, Rows]) -> dict[str, pl.LazyFrame]:
        """Of each input the rows that belong to these values of the unit's columns."""
        parts: dict[str, pl.LazyFrame] = {}
        for one in self._inputs.values():
            self._part(one, unit, views, parts)
        return {name: parts[name] for name in self._inputs}

    def _part(
        self,
        one: Subscription,
        unit: pl.DataFrame,
        views: Mapping[str, Rows],
        parts: dict[str, pl.LazyFrame],
    ) -> pl.LazyFrame:
        if one.name not in parts:
            parts[one.name] = views[one.name].holding(self._wanted(one, unit, views, parts))
        return parts[one.name]

    def _wanted(
        self,
        one: Subscription,
        unit: pl.DataFrame,
        views: Mapping[str, Rows],
        parts: dict[str, pl.LazyFrame],
    ) -> pl.DataFrame:
        """The values of an input's own columns by which its rows belong to the unit's."""
        if one.through is None:
            assert one.key is not None  # Every input has a path, else there is no unit.
            return unit.select(pl.col(name).alias(one.key[name]) for name in self._unit)
        other = self._part(self._inputs[one.through.input], unit, views, parts)
        columns = [pl.col(theirs).alias(own) for own, theirs in one.through.on.items()]
        return other.select(columns).unique().collect(engine="streaming")

    def _own_columns(self, one: Subscription) -> list[str]:
        if one.through is not None:
            return list(one.through.on)
        assert one.key is not None  # Every input has a path, else there is no unit.
        return list(dict.fromkeys(one.key[name] for name in self._unit))

    def _reached(self, one: Subscription, values: pl.DataFrame, views: Mapping[str, Rows]) -> pl.DataFrame:
        """The unit's values that rows with these values of their own columns belong to."""
        if one.through is None:
            assert one.key is not None  # Every input has a path, else there is no unit.
            return values.select(pl.col(one.key[name]).alias(name) for name in self._unit)
        other = self._inputs[one.through.input]
        theirs = values.select(pl.col(own).alias(name) for own, name in one.through.on.items())
        rows = views[other.name].holding(theirs)
        reached = rows.select(self._own_columns(other)).unique().collect(engine="streaming").drop_nulls()
        return self._reached(other, reached, views)

    def _kinds(self, views: Mapping[str, Rows]) -> dict[str, pl.DataType]:
        first = next(one for one in self._inputs.values() if one.key is not None)
        assert first.key is not None
        return {name: views[first.name].shape.columns[first.key[name]] for name in self._unit}


def whole(inputs: Mapping[str, Whole]) -> dict[str, pl.LazyFrame]:
    """All rows of each input."""
    return {name: one.rows() for name, one in inputs.items()}

"""What flows through a query plan: which input columns its columns are made of, and what decides its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["DIRECT", "INDIRECT"]


class ColumnSource(NamedTuple):
    """One way in which an input column takes part in an output column.

    Attributes:
        input: the input's name.
        column: the input's column.
        kind: whether its values become values (``DIRECT``) or decide over them (``INDIRECT``).
        subtype: of DIRECT: IDENTITY, TRANSFORMATION, AGGREGATION; of INDIRECT: JOIN, GROUP_BY,
            FILTER, SORT, WINDOW, CONDITIONAL.
        masking: whether its values cannot be told from the result (a hash, a count).
    """

    input: str
    column: str
    kind: Kind
    subtype: str
    masking: bool = False


Sources = frozenset[ColumnSource]
"""The input columns that take part in a value, each in every way in which it does."""

NONE: Sources = frozenset()
"""The sources of what no input has a part in."""
_RANK = {"IDENTITY": 0, "TRANSFORMATION": 1, "AGGREGATION": 2}


@dataclass(frozen=True)
class Known:
    """What is known of the transform as a whole.

    Attributes:
        every: all columns of all inputs.
        computed: of what a constant in the plan may have been computed.
    """

    every: Sources
    computed: Sources


@dataclass(frozen=True)
class Flow:
    """What one node gives on.

    Attributes:
        columns: the sources of each of its columns.
        rows: what decides which rows there are, and their order.
    """

    columns: Mapping[str, Sources]
    rows: Sources

    def of(self, names: Iterable[str]) -> Sources:
        """The sources of some columns.

        Raises:
            KeyError: if there is no such column.
        """
        return frozenset().union(*(self.columns[name] for name in names))

    @property
    def all(self) -> Sources:
        """The sources of all columns."""
        return self.of(self.columns)


def made_of(sources: Sources, subtype: str, *, masking: bool = False) -> Sources:
    """What a value computed from these has as its sources.

    Args:
        sources: of what it is computed from.
        subtype: how: TRANSFORMATION or AGGREGATION; the stronger of this and what was before stays.
        masking: whether they cannot be told from the value.

    Raises:
        KeyError: if the subtype is not one of DIRECT's.
    """
    return frozenset(
        source
        if source.kind == "INDIRECT"
        else source._replace(
            subtype=max(source.subtype, subtype, key=_RANK.__getitem__), masking=source.masking or masking
        )
        for source in sources
    )


def deciding(sources: Sources, subtype: str) -> Sources:
    """What something that these decide over has as its sources.

    Args:
        sources: of what decides.
        subtype: how: JOIN, GROUP_BY, FILTER, SORT, WINDOW or CONDITIONAL.
    """
    return frozenset(
        source
        if source.kind == "INDIRECT"
        else ColumnSource(source.input, source.column, "INDIRECT", subtype)
        for source in sources
    )

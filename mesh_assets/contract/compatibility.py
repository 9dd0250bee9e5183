"""What a new version of a contract changes for those who read the product, and whether it may.

A promise may be made stronger in any version, and weaker only with a higher major version: whoever
relies on it has to be told, and gets time (:mod:`mesh_assets.contract.keeping`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh_assets.contract import standard
from mesh_assets.contract.document import display, mapping
from mesh_assets.contract.model import (
    END_OF_SUPPORT,
    ColumnContract,
    Contract,
    QualityRule,
    SlaProperty,
    TableContract,
)
from mesh_assets.contract.physical import PhysicalType
from mesh_assets.errors import ContractError, Mistake
from mesh_assets.names import ProductName

Readers = Mapping[tuple[str, str | None], Iterable[ProductName]]
"""(table, column) -> the products that read the column; column None: that may read any of the table."""

_MAJOR = re.compile(r"[vV]?([0-9]+)(?:[.\-+]|\Z)")
_NUMBERS = re.compile(r"[0-9]+")
_WIDER = {
    "smallint": ("integer", "bigint"),
    "integer": ("bigint",),
    "real": ("double precision",),
    "character": ("character varying", "text"),
    "character varying": ("text",),
}
_WIDEST_DECIMAL = 38
_SMALLER_IS_BETTER = ("latency", "frequency", "timeToDetect", "timeToNotify", "timeToRepair")
_ENDS = (END_OF_SUPPORT, "endOfLife")
# An option that only lets less through may be added; one that only let less through must stay.
_LOWER_BOUNDS = ("minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties")
_UPPER_BOUNDS = ("maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties")


@dataclass(frozen=True)
class Change:
    """One difference between two versions of a contract.

    Attributes:
        what: in words, without its place: ``column 'note' was removed``.
        breaking: a promise was taken back or made weaker.
        table: the table, or None for the contract as a whole.
        column: the column, or None for the table or contract as a whole.
        consumers: the products that read it.
        line: where the new contract has it, or what enclosed it.
    """

    what: str
    breaking: bool
    table: str | None = None
    column: str | None = None
    consumers: tuple[ProductName, ...] = ()
    line: int = field(default=1, compare=False)

    def __str__(self) -> str:
        place = f"{self.table}: " if self.table else ""
        if not self.consumers:
            return f"{place}{self.what}"
        return f"{place}{self.what}; read by {', '.join(map(str, self.consumers))}"


def compare(old: Contract, new: Contract, readers: Readers | None = None) -> tuple[Change, ...]:
    """What changed from one version of a contract to another, in the order of the new one.

    Args:
        old: what was promised.
        new: what will be.
        readers: who reads what; those concerned are named.
    """
    return tuple(_Comparison(old, new, readers or {}).changes())


def concerned(readers: Readers, table: str, column: str | None) -> tuple[ProductName, ...]:
    """The products that read a column of a table, sorted; any of its columns if none is named."""
    found: set[ProductName] = set()
    for (read_table, read_column), names in readers.items():
        if read_table == table and (column is None or read_column in (None, column)):
            found.update(names)
    return tuple(sorted(found))


def major(version: str) -> str:
    """The part of a version that has to rise when a promise is taken back: its first number."""
    match = _MAJOR.match(version)
    return str(int(match[1])) if match else version


def rises(old: str, new: str) -> bool:
    """Whether a version is higher than another: number by number, then as text."""
    return _order(new) > _order(old)


def raised(old: Contract, new: Contract) -> bool:
    """Whether a contract may take back what another one promised: its major version is a higher one."""
    return major(old.version) != major(new.version) and rises(old.version, new.version)


def refusal(old: Contract, new: Contract, changes: Sequence[Change]) -> ContractError | None:
    """Why a contract must not take effect after another one; None if it may.

    Args:
        old: the contract released last.
        new: the one that is to hold.
        changes: :func:`compare` of the two.
    """
    breaking = [change for change in changes if change.breaking]
    if not breaking or raised(old, new):
        return None
    mistakes = sorted(Mistake(change.line, f"breaks a promise: {change}") for change in breaking)
    mistakes[-1] = Mistake(
        mistakes[-1].line,
        mistakes[-1].message,
        (),
        f"{new.name} {old.version} promised it: keep the promise, or write version: "
        f"{_next_major(old.version)} and leave consumers the old one for a while",
    )
    return ContractError.of(display(new.path), mistakes)


def unraised(old: Contract, new: Contract, changes: Sequence[Change]) -> Mistake | None:
    """What to do about the version of a contract that changed and may; None if there is nothing.

    Released contracts are kept by their version, so other content needs a higher one.
    """
    if new.hash == old.hash or rises(old.version, new.version):
        return None
    if new.version == old.version:
        said = "; ".join(map(str, changes)) or "its words"
        return Mistake(
            1,
            f"version {old.version} of {new.name} already stands for other content; what changed: {said}",
            (),
            f"write version: {_next_minor(old.version)}",
        )
    return Mistake(
        1,
        f"version {new.version} of {new.name} is lower than {old.version}, which holds already",
        (),
        "versions only rise: to take a release back, give the old content a new version",
    )


def _order(version: str) -> tuple[tuple[int, ...], str]:
    return tuple(int(number) for number in _NUMBERS.findall(version)), version


def _next_major(version: str) -> str:
    number = major(version)
    return f"{int(number) + 1}.0.0" if number.isdecimal() else f"{version}-2"


def _next_minor(version: str) -> str:
    numbers = [int(number) for number in _NUMBERS.findall(version)]
    if not numbers:
        return f"{version}-2"
    return f"{numbers[0]}.{(numbers[1] if len(numbers) > 1 else 0) + 1}.0"


class _Comparison:
    def __init__(self, old: Contract, new: Contract, readers: Readers) -> None:
        self.old, self.new, self.readers = old, new, readers

    def changes(self) -> Iterator[Change]:
        if self.old.id != self.new.id:
            yield Change(f"the contract's id became {self.new.id!r} from {self.old.id!r}", True)
        yield from self._status()
        yield from self._promises()
        old = {table.name: table for table in self.old.tables}
        new = {table.name: table for table in self.new.tables}
        for table in self.new.tables:
            if table.name in old:
                yield from self._table(old[table.name], table)
            else:
                yield Change("the table was added", False, table.name, line=table.line)
        for name in old.keys() - new.keys():
            yield self._change("the table was removed", True, name)

    def _change(
        self, what: str, breaking: bool, table: str, column: str | None = None, line: int = 1
    ) -> Change:
        return Change(what, breaking, table, column, concerned(self.readers, table, column), line)

    def _status(self) -> Iterator[Change]:
        if self.old.status == self.new.status:
            return
        everyone = tuple(sorted({name for names in self.readers.values() for name in names}))
        retired = self.new.status == "retired" and bool(everyone)
        yield Change(f"status {self.old.status} became {self.new.status}", retired, consumers=everyone)

    # -- service levels

    def _promises(self) -> Iterator[Change]:
        old = {(promise.name, promise.element): promise for promise in self.old.sla}
        new = {(promise.name, promise.element): promise for promise in self.new.sla}
        for key, promise in new.items():
            if key not in old:
                yield Change(f"{_label(promise)} {_value(promise)} is promised", False, line=promise.line)
                continue
            before = old[key]
            if (before.value, before.unit) == (promise.value, promise.unit):
                continue
            yield Change(
                f"{_label(promise)} {_value(before)} became {_value(promise)}",
                _weaker(before, promise),
                line=promise.line,
            )
        for key in old.keys() - new.keys():
            # An end of support that is taken back is more than was promised.
            taken = old[key].name not in _ENDS
            yield Change(f"{_label(old[key])} {_value(old[key])} is no longer promised", taken)

    # -- tables and columns

    def _table(self, old: TableContract, new: TableContract) -> Iterator[Change]:
        if old.key != new.key:
            yield self._change(
                f"the primary key {', '.join(old.key)} became {', '.join(new.key)}",
                True,
                new.name,
                line=new.line,
            )
        if old.physical_name != new.physical_name:
            yield self._change(
                f"it is read from {new.physical_name}, no longer from {old.physical_name}",
                False,
                new.name,
                line=new.line,
            )
        before = {column.name: column for column in old.columns}
        after = {column.name: column for column in new.columns}
        added = [column for column in new.columns if column.name not in before]
        for column in new.columns:
            if column.name in before:
                for what, breaking in _column(before[column.name], column):
                    yield self._change(what, breaking, new.name, column.name, column.line)
            else:
                yield Change(
                    f"column {column.name!r} was added", False, new.name, column.name, (), column.line
                )
        for column in old.columns:
            if column.name in after:
                continue
            alike = [one for one in added if _alike(column, one)]
            guess = f" (renamed to {alike[0].name!r}?)" if len(alike) == 1 else ""
            line = alike[0].line if len(alike) == 1 else new.line
            yield self._change(
                f"column {column.name!r} was removed{guess}", True, new.name, column.name, line
            )
        yield from self._rules(old, new, after.keys())

    def _rules(self, old: TableContract, new: TableContract, columns: Iterable[str]) -> Iterator[Change]:
        before, after = _by_name(old.quality), _by_name(new.quality)
        for name, rule in after.items():
            if name not in before:
                yield self._change(f"rule {name!r} was added", False, new.name, rule.column, rule.line)
                continue
            for what, breaking in _rule(before[name].definition, rule.definition):
                yield self._change(f"rule {name!r}: {what}", breaking, new.name, rule.column, rule.line)
        for name in before.keys() - after.keys():
            rule = before[name]
            # A column's rules go with it, and its removal was told.
            if rule.column is None or rule.column in columns:
                yield self._change(
                    f"rule {name!r} was removed", _binding(rule.definition), new.name, rule.column, new.line
                )


def _label(promise: SlaProperty) -> str:
    return f"{promise.name} of {promise.element}" if promise.element else promise.name


def _value(promise: SlaProperty) -> str:
    return f"{promise.value} {promise.unit}".strip()


def _weaker(old: SlaProperty, new: SlaProperty) -> bool:
    if old.name in _ENDS:
        return str(new.value) < str(old.value)
    if old.seconds is None or new.seconds is None:
        return False
    if old.name in _SMALLER_IS_BETTER:
        return new.seconds > old.seconds
    return old.name == "retention" and new.seconds < old.seconds


def _column(old: ColumnContract, new: ColumnContract) -> Iterator[tuple[str, bool]]:
    label = f"column {new.name!r}"
    if old.physical_type and new.physical_type:
        before, after = PhysicalType.parse(old.physical_type), PhysicalType.parse(new.physical_type)
        if not before.same(after):
            yield f"{label}: {old.physical_type} became {new.physical_type}", not _widened(before, after)
    elif old.physical_type:
        yield f"{label}: the type {old.physical_type} is no longer promised", True
    elif new.physical_type:
        yield f"{label}: the type {new.physical_type} is promised", False
    if old.logical_type != new.logical_type:
        yield f"{label}: logical type {old.logical_type} became {new.logical_type}", True
    if old.required != new.required:
        yield (f"{label} may be null" if old.required else f"{label} is never null"), old.required
    if old.unique != new.unique:
        yield (f"{label} need not be unique" if old.unique else f"{label} is unique"), old.unique
    yield from _classification(label, old.classification, new.classification)
    yield from _values(label, old.values, new.values)
    yield from _options(label, old.options, new.options)


def _widened(old: PhysicalType, new: PhysicalType) -> bool:
    """Whether every value of the old type is one of the new, and means the same."""
    if (old.array, old.zone) != (new.array, new.zone):
        return False
    if old.name == new.name == "numeric":
        return len(old.numbers) == len(new.numbers) == 2 and _holds(old.numbers, new.numbers)
    if old.name == new.name:
        wider = not new.arguments or (bool(old.numbers) and new.numbers >= old.numbers)
        return wider and old.name in ("character varying", "bit varying")
    if new.name not in _WIDER.get(old.name, ()):
        return False
    return not new.numbers or (bool(old.numbers) and new.numbers >= old.numbers)


def _holds(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    # Another scale would print the same number otherwise, and one without bounds is kept as text.
    return new[1] == old[1] and old[0] <= new[0] <= _WIDEST_DECIMAL


def _classification(label: str, old: str | None, new: str | None) -> Iterator[tuple[str, bool]]:
    if old == new:
        return
    if old is None:
        yield f"{label} is {new}", False
    elif new is None:
        yield f"{label} is no longer {old}", True
    else:
        order = standard.CLASSIFICATIONS
        yield f"{label}: {old} became {new}", order.index(new) < order.index(old)


def _values(label: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterator[tuple[str, bool]]:
    if old == new:
        return
    if not old:
        yield f"{label} is one of {_listed(new)}", False
    elif not new:
        yield f"{label} may be anything, no longer one of {_listed(old)}", True
    else:
        if more := [value for value in new if value not in old]:
            yield f"{label} may be {_listed(more)} too", True
        if fewer := [value for value in old if value not in new]:
            yield f"{label} is no longer {_listed(fewer)}", False


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _options(label: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None:
            yield f"{label}: {name} is {after}", False
        elif after is None:
            yield f"{label}: {name} is no longer {before}", True
        else:
            looser = True
            if isinstance(before, int | float) and isinstance(after, int | float):
                looser = (name in _LOWER_BOUNDS and after < before) or (
                    name in _UPPER_BOUNDS and after > before
                )
            yield f"{label}: {name} {before} became {after}", looser


def _alike(old: ColumnContract, new: ColumnContract) -> bool:
    return (old.logical_type, old.key, old.classification) == (
        new.logical_type,
        new.key,
        new.classification,
    ) and PhysicalType.parse(old.physical_type).same(PhysicalType.parse(new.physical_type))


# -- quality rules


def _by_name(rules: Iterable[QualityRule]) -> dict[str, QualityRule]:
    """Rules by name; one without a name is known by what it says."""
    return {
        str(
            rule.definition.get("name")
            or rule.definition.get("id")
            or json.dumps(rule.definition, sort_keys=True, default=str)
        ): rule
        for rule in rules
    }


def _blocking(rule: Mapping[str, Any]) -> bool | None:
    """What a rule says of itself; None if nothing."""
    for one in rule.get("customProperties") or ():
        if mapping(one).get("property") == "blocking":
            return mapping(one).get("value") is True
    return None


def _binding(rule: Mapping[str, Any]) -> bool:
    """Whether readers may rely on a rule: a warning only tells."""
    warns = str(rule.get("severity", "error")).casefold() in ("warning", "info")
    return _blocking(rule) is True or not warns


def _rule(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    blocked, blocks = _blocking(old), _blocking(new)
    if blocked is not blocks and _binding(old):
        # Where nothing is said, a failing row is kept out, and a failing table is not.
        if blocks is False:
            yield "what fails is no longer kept out", True
        elif blocked is True:
            yield "it no longer says that it blocks", True
        elif blocks:
            yield "it blocks", False
    if _binding(old) != _binding(new):
        yield ("it only warns", True) if _binding(old) else ("it no longer only warns", False)
    before, after = _claim(old), _claim(new)
    if before == after:
        return
    operators = [name for name in standard.OPERATORS if name in old and name in new]
    same_measure = _claim(old, threshold=False) == _claim(new, threshold=False)
    for name in operators if same_measure else ():
        looser = _looser(name, old[name], new[name])
        yield f"{name} {old[name]} became {new[name]}", looser and _binding(old)
        return
    yield "it checks something else", _binding(old)


def _claim(rule: Mapping[str, Any], *, threshold: bool = True) -> dict[str, Any]:
    """What a rule states, without how it is called, explained and followed up."""
    fields = ("type", "metric", "rule", "query", "arguments", "unit", "engine", "implementation")
    claim = {name: rule[name] for name in fields if rule.get(name) is not None}
    claim.setdefault("type", "library")
    for name in standard.OPERATORS:
        if name in rule:
            claim[name] = rule[name] if threshold else True
    return claim


def _looser(operator: str, old: Any, new: Any) -> bool:  # noqa: ANN401 - whatever the contract says
    """Whether the new threshold lets pass what the old one did not."""
    try:
        if operator in ("mustBeLessThan", "mustBeLessOrEqualTo"):
            return bool(new > old)
        if operator in ("mustBeGreaterThan", "mustBeGreaterOrEqualTo"):
            return bool(new < old)
        if operator == "mustBeBetween":
            return bool(new[0] < old[0] or new[1] > old[1])
        if operator == "mustNotBeBetween":
            return bool(new[0] > old[0] or new[1] < old[1])
    except (TypeError, IndexError):
        pass
    return True

"""Holds the subscriptions of derived products against the contracts of what they subscribe to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from mesh_assets.contract.compatibility import major
from mesh_assets.contract.definition import EXACT_SUFFIX, InputDefinition, ProductDefinition
from mesh_assets.contract.document import display
from mesh_assets.contract.kept import Kept, written_hash
from mesh_assets.contract.model import Contract, TableContract
from mesh_assets.contract.physical import PhysicalType
from mesh_assets.errors import ContractError, Mistake, UnknownName
from mesh_assets.names import ProductName


def subscribe(
    definitions: Mapping[ProductName, ProductDefinition],
    contracts: Mapping[ProductName, Contract],
    broken: Collection[ProductName],
    kept: Mapping[ProductName, Kept] | None = None,
) -> tuple[dict[ProductName, ProductDefinition], dict[ProductName, ContractError]]:
    """Fill in the tables that subscriptions mean, and find what is wrong with them.

    Args:
        definitions: of all products that could be read.
        contracts: of the same ones.
        broken: products that could not.
        kept: old versions that the mesh keeps, and for whom.

    Returns:
        The derived products' definitions with every input's table, and the errors of those that
        cannot be run: what they read is not there, is broken, or reads them in turn.
    """
    refused: dict[ProductName, ContractError] = {}
    resolved: dict[ProductName, ProductDefinition] = {}
    derived: dict[ProductName, ProductDefinition] = {}
    for name, written in definitions.items():
        if written.derived:
            inputs = tuple(_at_version(one, contracts, broken) for one in written.inputs)
            inputs = tuple(_as_written(one, written, kept or {}) for one in inputs)
            derived[name] = replace(written, inputs=inputs)
    for name, definition in derived.items():
        circle = _circle(name, derived)
        if circle:
            refused[name] = _error(definition, [_circular(definition, circle)])
            continue
        found, mistakes = _inputs(definition, contracts, broken)
        mistakes += _paths(contracts[name], found, definition, contracts)
        if mistakes:
            refused[name] = _error(definition, mistakes)
        else:
            resolved[name] = replace(definition, inputs=tuple(found.values()))
    # Whoever reads a refused product has nothing to read either.
    while stranded := {
        name: one
        for name, definition in resolved.items()
        for one in definition.inputs
        if one.product in refused
    }:
        for name, one in stranded.items():
            refused[name] = _error(resolved.pop(name), [_is_broken(definitions[name], one)])
    return resolved, refused


def _at_version(
    one: InputDefinition, contracts: Mapping[ProductName, Contract], broken: Collection[ProductName]
) -> InputDefinition:
    """The input with the product that has the major version asked for, if there is one."""
    if one.version is None or _has_version(one, contracts):
        return one
    kept = one.product.kept_version(one.version)
    return replace(one, product=kept) if kept in contracts or kept in broken else one


def _as_written(
    one: InputDefinition, consumer: ProductDefinition, kept: Mapping[ProductName, Kept]
) -> InputDefinition:
    """The input with the old version that its consumer, which names none, was written for."""
    if one.version is not None:
        return one
    # A kept version of the consumer itself is written as that was.
    own = [consumer.name, *(consumer.name.keeps or ())[:1]]
    versions = {
        name.keeps[1]: (name, note)
        for name, note in kept.items()
        if name.keeps and name.keeps[0] == one.product and not note.readers.keys().isdisjoint(own)
    }
    for _, (name, note) in sorted(versions.items()):
        if written_hash(consumer) in [note.readers.get(known) for known in own]:
            return replace(one, product=name)
    return one


def _has_version(one: InputDefinition, contracts: Mapping[ProductName, Contract]) -> bool:
    contract = contracts.get(one.product)
    return contract is not None and major(contract.version) == str(one.version)


def _versions(product: ProductName, contracts: Mapping[ProductName, Contract]) -> tuple[str, ...]:
    """The major versions that there are of a product."""
    kept = [str(name.keeps[1]) for name in contracts if name.keeps and name.keeps[0] == product]
    return tuple(sorted({*kept, major(contracts[product].version)}))


def _error(definition: ProductDefinition, mistakes: list[Mistake]) -> ContractError:
    return ContractError.of(display(definition.path), mistakes)


def _circle(start: ProductName, derived: Mapping[ProductName, ProductDefinition]) -> list[ProductName]:
    """The shortest way from a product through its inputs back to itself; empty if there is none."""
    ways = [[start]]
    seen: set[ProductName] = set()
    for way in ways:
        definition = derived.get(way[-1])
        for one in definition.inputs if definition else ():
            if one.product == start:
                return [*way, start]
            if one.product not in seen:
                seen.add(one.product)
                ways.append([*way, one.product])
    return []


def _circular(definition: ProductDefinition, circle: list[ProductName]) -> Mistake:
    inner = next(one for one in definition.inputs if one.product == circle[1])
    way = " <- ".join(map(str, circle))
    return Mistake(
        inner.line,
        f"circular subscription: {way}",
        (),
        "a product cannot be made of itself, not even by way of others: take one of these inputs out",
    )


def _is_broken(definition: ProductDefinition, one: InputDefinition) -> Mistake:
    return Mistake(
        definition.line_of("inputs", one.name, "product"),
        f"input {one.name!r} reads {one.product}, which is broken itself",
        (),
        f"mend {one.product} first",
    )


def _inputs(
    definition: ProductDefinition, contracts: Mapping[ProductName, Contract], broken: Collection[ProductName]
) -> tuple[dict[str, InputDefinition], list[Mistake]]:
    """The inputs whose tables exist, with their tables, and what is wrong with the others."""
    found: dict[str, InputDefinition] = {}
    mistakes: list[Mistake] = []
    for one in definition.inputs:
        contract = contracts.get(one.product)
        if contract is None and one.product in broken:
            mistakes.append(_is_broken(definition, one))
        elif contract is None:
            others = [str(other) for other in contracts if other != definition.name]
            unknown = UnknownName.of("product", str(one.product), others)
            mistakes.append(
                Mistake(
                    definition.line_of("inputs", one.name, "product"),
                    f"input {one.name!r} reads {one.product}, which does not exist",
                    tuple(unknown.available),
                    unknown.hint,
                )
            )
        elif one.version is not None and not _has_version(one, contracts):
            mistakes.append(
                Mistake(
                    definition.line_of("inputs", one.name, "version"),
                    f"input {one.name!r} reads version {one.version} of {one.product}, which is not kept",
                    _versions(one.product, contracts),
                    f"move to version {major(contract.version)}, or ask its owner to keep the old one",
                )
            )
        else:
            table = contract.default_table if not one.table else _table(contract, one.table)
            if table is not None:
                found[one.name] = replace(one, table=table.name)
                continue
            names = [table.name for table in contract.tables]
            if one.table:
                unknown = UnknownName.of("table", one.table, names)
                message, hint = f"{one.product} has no table {one.table!r}", unknown.hint
            else:
                message, hint = f"{one.product} has several tables and no default one", "add table: <name>"
            line = definition.line_of("inputs", one.name, "table")
            mistakes.append(Mistake(line, f"input {one.name!r}: {message}", tuple(names), hint))
    return found, mistakes


def _table(contract: Contract, name: str) -> TableContract | None:
    return next((table for table in contract.tables if table.name == name), None)


def _paths(
    own: Contract,
    inputs: Mapping[str, InputDefinition],
    definition: ProductDefinition,
    contracts: Mapping[ProductName, Contract],
) -> list[Mistake]:
    """What is wrong with the key paths."""
    tables = {name: contracts[one.product].table(one.table) for name, one in inputs.items()}
    mistakes: list[Mistake] = []
    first: InputDefinition | None = None
    for name, one in inputs.items():
        if one.through is not None and one.through.input in tables:
            at = ("inputs", name, "through", "by")
            for mine, other in one.through.on.items():
                line = definition.line_of(*at, mine)
                mistakes += _column(tables[name], mine, f"input {name!r}", line)
                mistakes += _column(tables[one.through.input], other, f"input {one.through.input!r}", line)
                mistakes += _types(tables[name], mine, tables[one.through.input], other, line)
        for column in one.exact:
            mistakes += _exact_column(tables[name], column, name, definition.line_of("inputs", name, "exact"))
        if one.key is None:
            continue
        if first is None:
            first = one
        elif set(one.key) != set(first.key or ()):
            mistakes.append(
                Mistake(
                    definition.line_of("inputs", name, "key"),
                    f"input {name!r} has the key path {', '.join(sorted(one.key))}, "
                    f"but {first.name!r} has {', '.join(sorted(first.key or ()))}",
                    (),
                    "all key paths of a product lead to the same columns of its output",
                )
            )
        for output, column in one.key.items():
            line = definition.line_of("inputs", name, "key", output)
            mistakes += _column(tables[name], column, f"input {name!r}", line)
            for table in own.tables:
                mistakes += _key_column(table, output, line)
                mistakes += _types(table, output, tables[name], column, line)
    return list(dict.fromkeys(mistakes))


def _column(table: TableContract, column: str, whose: str, line: int) -> Iterator[Mistake]:
    names = [one.name for one in table.columns]
    if column not in names:
        unknown = UnknownName.of("column", column, names)
        yield Mistake(
            line, f"table {table.name!r} of {whose} has no column {column!r}", tuple(names), unknown.hint
        )


def _exact_column(table: TableContract, column: str, called: str, line: int) -> Iterator[Mistake]:
    yield from _column(table, column, f"input {called!r}", line)
    text = column + EXACT_SUFFIX
    if text in [one.name for one in table.columns]:
        yield Mistake(
            line,
            f"input {called!r} has a column {text!r} already, so the texts of {column!r} cannot be called so",
        )


def _key_column(table: TableContract, column: str, line: int) -> Iterator[Mistake]:
    if column not in table.key:
        yield Mistake(
            line,
            f"a key path leads to columns of the output's primary key, and {column!r} is not in that "
            f"of {table.name!r}",
            table.key,
            "the contract marks those columns with primaryKey: true",
        )


def _types(one: TableContract, column: str, two: TableContract, other: str, line: int) -> Iterator[Mistake]:
    kinds = [
        next((found.physical_type for found in table.columns if found.name == name), "")
        for table, name in ((one, column), (two, other))
    ]
    if all(kinds) and not PhysicalType.parse(kinds[0]).same(PhysicalType.parse(kinds[1])):
        yield Mistake(
            line,
            f"columns that a key path holds to be equal are of one type, but {one.name}.{column} is "
            f"{kinds[0]} and {two.name}.{other} is {kinds[1]}",
        )

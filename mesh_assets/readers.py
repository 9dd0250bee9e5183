"""Who reads which tables and columns of a product: asked before its contract changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mesh_assets.contract import compatibility
from mesh_assets.contract.compatibility import Readers
from mesh_assets.contract.definition import InputDefinition
from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.contract.kept import written_hash
from mesh_assets.contract.model import Contract, TableContract
from mesh_assets.inspection import inspect
from mesh_assets.names import ProductName


def table_readers(discovery: Discovery, name: ProductName) -> Readers:
    """Who subscribes to which table of a product: known without looking into any transform."""
    return {(table, None): names for table, names in discovery.reads(name).items()}


def column_readers(discovery: Discovery, contract: Contract) -> Readers:
    """Who reads which column of a product, by the query plans of the transforms.

    A transform that cannot be looked into is taken to read all columns. Versions kept beside the
    product are left out: what they are to do about a change is theirs to say.

    Args:
        discovery: all products, those included whose subscriptions a new contract would break.
        contract: the product's tables as its consumers know them: as they were released.
    """
    found: dict[tuple[str, str | None], set[ProductName]] = {}
    for consumer in (*discovery.products.values(), *discovery.refused.values()):
        own = [one for one in consumer.definition.inputs if one.product == contract.name]
        if not own or _keeps(consumer, contract.name):
            continue
        tables = input_tables(discovery, consumer, contract)
        looked = inspect(consumer, tables) if len(tables) == len(consumer.definition.inputs) else None
        if (looked is None or looked.error) and consumer.name in discovery.products:
            now = inspect(consumer, input_tables(discovery, consumer))
            # It has moved to the new contract already.
            looked = now if not now.error else looked
        for one in own:
            if one.name not in tables:
                continue
            table = tables[one.name].name
            if looked is None or looked.error:
                found.setdefault((table, None), set()).add(consumer.name)
                continue
            for column in {*looked.reads.get(one.name, ()), *_path(consumer, one)}:
                found.setdefault((table, column), set()).add(consumer.name)
    return {place: frozenset(names) for place, names in found.items()}


def unnamed_readers(discovery: Discovery, old: Contract, new: Contract) -> dict[ProductName, str]:
    """The products that name no version and read what a new one takes back, and how each is written."""
    changes = compatibility.compare(old, new)
    if any(change.breaking for change in changes):
        changes = compatibility.compare(old, new, column_readers(discovery, old))
    hurt = {name for change in changes if change.breaking for name in change.consumers}
    consumers = {**discovery.refused, **discovery.products}
    return {
        name: written_hash(consumers[name].definition)
        for name in sorted(hurt)
        if any(one.product == old.name and one.version is None for one in consumers[name].definition.inputs)
    }


def input_tables(
    discovery: Discovery, consumer: Product, contract: Contract | None = None
) -> dict[str, TableContract]:
    """The table of each input of a derived product, by the input's name; unknown ones are left out.

    Args:
        discovery: where the products read are.
        consumer: a derived product.
        contract: taken for its product, in place of what the product's folder says.
    """
    tables: dict[str, TableContract] = {}
    for one in consumer.definition.inputs:
        if contract is not None and one.product == contract.name:
            table = _table(contract, one) or _default_meant(discovery, contract, one)
        else:
            product = discovery.products.get(one.product) or discovery.refused.get(one.product)
            table = _table(product.contract, one) if product else None
        if table is not None:
            tables[one.name] = _with_kept(table, one, consumer)
    return tables


def _keeps(product: Product, other: ProductName) -> bool:
    """Whether a product keeps an old version of another one: it gives what that has no more."""
    return product.name.keeps is not None and product.name.keeps[0] == other


def _with_kept(table: TableContract, one: InputDefinition, consumer: Product) -> TableContract:
    """The table with what a kept version promises of it, too.

    The lake holds all columns of the source: those also that are promised in the old version only.
    """
    own = next((mine for mine in consumer.contract.tables if mine.name == table.name), None)
    if own is None or not _keeps(consumer, one.product):
        return table
    known = {column.name for column in table.columns}
    return replace(
        table, columns=(*table.columns, *(column for column in own.columns if column.name not in known))
    )


def _table(contract: Contract, one: InputDefinition) -> TableContract | None:
    if not one.table:
        return contract.default_table
    return next((table for table in contract.tables if table.name == one.table), None)


def _default_meant(discovery: Discovery, contract: Contract, one: InputDefinition) -> TableContract | None:
    """The default table, if it is as such that the input names one that this contract has not."""
    product = discovery.products.get(one.product)
    now = product.contract.default_table if product else None
    return contract.default_table if now is not None and now.name == one.table else None


def _path(consumer: Product, one: InputDefinition) -> Iterator[str]:
    """The input's columns that key paths lead over."""
    if one.key is not None:
        yield from one.key.values()
    if one.through is not None:
        yield from one.through.on
    for other in consumer.definition.inputs:
        if other.through is not None and other.through.input == one.name:
            yield from other.through.on.values()

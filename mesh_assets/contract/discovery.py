"""Finds all domains and products of a folder; what is broken is reported and hides nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mesh_assets.contract import definition
from mesh_assets.contract.compatibility import major
from mesh_assets.contract.definition import DomainDefinition, ProductDefinition
from mesh_assets.contract.document import display
from mesh_assets.contract.kept import Kept
from mesh_assets.contract.loader import load
from mesh_assets.contract.model import END_OF_SUPPORT, Contract, TableContract
from mesh_assets.contract.subscription import subscribe
from mesh_assets.errors import ContractError, Mistake, UnknownName
from mesh_assets.names import ProductName, valid_part


@dataclass(frozen=True)
class Product:
    """A product as its folder defines it."""

    contract: Contract
    definition: ProductDefinition
    folder: Path

    @property
    def name(self) -> ProductName:
        """``domain.product``."""
        return self.contract.name

    @property
    def derived(self) -> bool:
        """Whether it is made of other products instead of being captured."""
        return self.definition.derived

    @property
    def transform_hash(self) -> str:
        """SHA-256 (hex) of the transform's file as it is now; "" for a captured product.

        Raises:
            ContractError: if the file cannot be read any more.
        """
        path = self.definition.transform
        if path is None:
            return ""
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ContractError(f"{display(path)} cannot be read: {error.strerror}") from error

    @property
    def code_hash(self) -> str:
        """SHA-256 (hex) of all that decides on what is derived: transform and inputs; "" if captured.

        Raises:
            ContractError: if the transform's file cannot be read any more.
        """
        if not self.derived:
            return ""
        inputs = [
            [
                one.name,
                str(one.product),
                one.table,
                one.key and dict(one.key),
                one.through and [one.through.input, dict(one.through.on)],
                # Only where there are any: what was derived before there could be stays as it is.
                *([list(one.exact)] if one.exact else []),
            ]
            for one in self.definition.inputs
        ]
        return hashlib.sha256(f"{json.dumps(inputs)}\n{self.transform_hash}".encode()).hexdigest()


@dataclass(frozen=True)
class Discovery:
    """Everything found below a products folder.

    Attributes:
        domains: by name; only those whose definition is right.
        products: by name, sorted; only those whose contract and definition are right.
        broken: folders left out, and why.
        refused: those of the broken that could be read, and only what they subscribe to is wrong.
        kept: old versions that the mesh keeps by itself, also such as are broken.
    """

    domains: Mapping[str, DomainDefinition] = field(default_factory=dict)
    products: Mapping[ProductName, Product] = field(default_factory=dict)
    broken: tuple[tuple[Path, ContractError], ...] = ()
    refused: Mapping[ProductName, Product] = field(default_factory=dict)
    kept: Mapping[ProductName, Kept] = field(default_factory=dict)

    def product(self, name: ProductName) -> Product:
        """A product by name.

        Raises:
            ContractError: if its folder is there but broken, or that of its domain.
            UnknownName: if there is no such product.
        """
        if name in self.products:
            return self.products[name]
        for folder, error in self.broken:
            own = (folder.parent.name, folder.name) == (name.domain, name.product)
            domain = folder.name == name.domain and (folder / name.product).is_dir()
            if own or domain:
                raise error
        raise UnknownName.of("product", str(name), map(str, self.products))

    def sources(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """``(domain, source)`` -> the ``schema.table`` names that products publish, sorted."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for product in self.products.values():
            if product.definition.source is None:
                continue
            tables = grouped.setdefault((product.name.domain, product.definition.source), [])
            tables += [table.physical_name for table in product.contract.tables]
        return {key: tuple(sorted(tables)) for key, tables in sorted(grouped.items())}

    def publishers(self, domain: str, source: str) -> dict[str, tuple[Product, TableContract]]:
        """``schema.table`` of one source -> the product and table that publish it."""
        return {
            table.physical_name: (product, table)
            for product in self.products.values()
            if (product.name.domain, product.definition.source) == (domain, source)
            for table in product.contract.tables
        }

    def derived(self, domain: str | None = None) -> tuple[Product, ...]:
        """Derived products of a domain (of all without one), each after those that it is made of."""
        return tuple(one for one in self._in_order if domain is None or one.name.domain == domain)

    def consumers(self, name: ProductName) -> tuple[ProductName, ...]:
        """The products that subscribe to a product directly, sorted."""
        return self._consumers.get(name, ())

    def reads(self, name: ProductName) -> dict[str, frozenset[ProductName]]:
        """Table of a product -> the products that read it."""
        found: dict[str, set[ProductName]] = {}
        for consumer in self.consumers(name):
            for one in self.products[consumer].definition.inputs:
                if one.product == name:
                    found.setdefault(one.table, set()).add(consumer)
        return {table: frozenset(consumers) for table, consumers in sorted(found.items())}

    @cached_property
    def _in_order(self) -> tuple[Product, ...]:
        ordered: dict[ProductName, Product] = {}
        waiting = [one for one in self.products.values() if one.derived]
        while waiting:
            # Circles are broken products: every round finds at least one.
            ready = [
                one
                for one in waiting
                if all(
                    read.product in ordered or not self.products[read.product].derived
                    for read in one.definition.inputs
                )
            ]
            ordered |= {one.name: one for one in ready}
            waiting = [one for one in waiting if one.name not in ordered]
        return tuple(ordered.values())

    @cached_property
    def _consumers(self) -> dict[ProductName, tuple[ProductName, ...]]:
        found: dict[ProductName, set[ProductName]] = {}
        for product in self.products.values():
            for one in product.definition.inputs:
                found.setdefault(one.product, set()).add(product.name)
        return {name: tuple(sorted(consumers)) for name, consumers in found.items()}


def discover(products: Path | str) -> Discovery:
    """Read every domain and product below a folder.

    A folder is a domain, and a folder in it a product; names starting with ``.`` or ``_`` and
    empty folders are passed over.

    Raises:
        ContractError: only if the folder itself is missing.
    """
    root = Path(products)
    if not root.is_dir():
        raise ContractError(
            f"there is no products folder {display(root)}", hint="set MESH_PRODUCTS, or start in the project"
        )
    found = _Found()
    for folder in _folders(root):
        found.domain(folder)
    found.subscribe()
    return Discovery(found.domains, found.products, tuple(found.broken), found.refused, found.kept)


class _Found:
    def __init__(self) -> None:
        self.domains: dict[str, DomainDefinition] = {}
        self.products: dict[ProductName, Product] = {}
        self.broken: list[tuple[Path, ContractError]] = []
        self.published: dict[tuple[str, str, str], Product] = {}
        self.ids: dict[str, Product] = {}
        self.refused: dict[ProductName, Product] = {}
        self.kept: dict[ProductName, Kept] = {}

    def subscribe(self) -> None:
        """Fill in the tables of all subscriptions; products whose own are wrong are broken."""
        for product in list(self.products.values()):
            keeps = product.name.keeps
            version = product.contract.version
            if keeps and keeps[0] in self.products and major(version) != str(keeps[1]):
                mistake = Mistake(
                    1,
                    f"{product.name} keeps version {keeps[1]} of {keeps[0]}, but its own is {version}",
                    (),
                    "a kept version stays as it is: write the version that it keeps, or rename the folder",
                )
                error = ContractError.of(display(product.contract.path), [mistake])
                self.broken.append((self.products.pop(product.name).folder, error))
        contracts = {name: product.contract for name, product in self.products.items()}
        broken = {ProductName(folder.parent.name, folder.name) for folder, _ in self.broken}
        for domain, _ in self.broken:
            broken |= {ProductName(domain.name, inner.name) for inner in _folders(domain)}
        definitions = {name: product.definition for name, product in self.products.items()}
        resolved, refused = subscribe(definitions, contracts, broken, self.kept)
        for name, whole in resolved.items():
            self.products[name] = replace(self.products[name], definition=whole)
        for name, error in refused.items():
            self.refused[name] = self.products.pop(name)
            self.broken.append((self.refused[name].folder, error))

    def domain(self, folder: Path) -> None:
        try:
            domain = definition.load_domain(folder / definition.DEFINITION_FILE)
        except ContractError as error:
            inside = [product.name for product in _folders(folder)]
            if inside:
                error.hint = f"until this is mended, these products are not available: {', '.join(inside)}"
            self.broken.append((folder, error))
            return
        self.domains[domain.name] = domain
        for inner in _folders(folder):
            try:
                if note := Kept.read(inner):
                    self.kept[ProductName(domain.name, inner.name)] = note
                product = _product(inner, domain)
                _check_support(product)
                self.claim(product)
            except ContractError as error:
                self.broken.append((inner, error))
            else:
                self.products[product.name] = product

    def claim(self, product: Product) -> None:
        """Refuse a second publisher of a source table and a second owner of a contract id."""
        contract = product.contract
        mistakes: list[Mistake] = []
        source = product.definition.source
        captured = () if source is None else contract.tables
        keys = [(contract.domain, source or "", table.physical_name) for table in captured]
        for key, table in zip(keys, captured, strict=True):
            if key in self.published:
                other = self.published[key]
                mistakes.append(
                    Mistake(
                        table.line,
                        f"source table {table.physical_name} is already published by {other.name} "
                        f"({display(other.contract.path)})",
                        (),
                        "a source table belongs to one product; remove it from one of the two",
                    )
                )
        if contract.id in self.ids:
            other = self.ids[contract.id]
            mistakes.append(
                Mistake(
                    1, f"id {contract.id!r} is already that of {other.name}", (), "give each contract its own"
                )
            )
        if mistakes:
            raise ContractError.of(display(contract.path), mistakes)
        self.published.update(dict.fromkeys(keys, product))
        self.ids[contract.id] = product


def _folders(parent: Path) -> Iterator[Path]:
    for folder in sorted(parent.iterdir()):
        if folder.is_dir() and folder.name[0] not in "._" and any(folder.iterdir()):
            yield folder


def _product(folder: Path, domain: DomainDefinition) -> Product:
    if not valid_part(folder.name):
        raise ContractError(
            f"{display(folder)}: the folder {folder.name!r} cannot name a product",
            hint="use a-z, 0-9 and _, a letter first",
        )
    name = ProductName(domain.name, folder.name)
    contract: Contract | None = None
    run: ProductDefinition | None = None
    errors: list[ContractError] = []
    # Both files are read even if the first is broken: one look shows all mistakes.
    try:
        contract = load(folder / definition.CONTRACT_FILE, name=name)
    except ContractError as error:
        errors.append(error)
    try:
        run = definition.load_product(folder / definition.DEFINITION_FILE)
        _check_source(run, domain)
    except ContractError as error:
        errors.append(error)
    if contract is not None and run is not None:
        mistakes = list(_untyped_columns(contract) if run.derived else _unnamed_tables(contract))
        if mistakes:
            errors.append(ContractError.of(display(contract.path), mistakes))
    if errors or contract is None or run is None:
        joined = ContractError("\n".join(str(error) for error in errors))
        joined.mistakes = tuple(mistake for error in errors for mistake in error.mistakes)
        raise joined
    return Product(contract, run, folder)


def _check_support(product: Product) -> None:
    """A kept old version is one until its end of support.

    Raises:
        ContractError: if that is over.
    """
    end = product.contract.promise(END_OF_SUPPORT)
    if product.name.keeps is None or end is None:
        return
    last = product.contract.last_day
    if last is None:
        mistake = Mistake(
            end.line, f"{END_OF_SUPPORT} {end.value!r} is not a day", (), "write it as in 2030-12-31"
        )
        raise ContractError.of(display(product.contract.path), [mistake])
    if product.contract.ended:
        mistake = Mistake(
            end.line,
            f"support of {product.name} ended on {last}: it is no longer made",
            (),
            f"remove {display(product.folder)}; what it held stays in the lake",
        )
        raise ContractError.of(display(product.contract.path), [mistake])


def _unnamed_tables(contract: Contract) -> Iterator[Mistake]:
    for table in contract.tables:
        if "." not in table.physical_name:
            yield Mistake(
                table.line,
                f"table {table.name!r} does not say which table of the source it is",
                (),
                "add physicalName: schema.table",
            )


def _untyped_columns(contract: Contract) -> Iterator[Mistake]:
    """No source decides on the types of a derived product's columns: the contract has to."""
    for table in contract.tables:
        for column in table.columns:
            if not column.physical_type:
                yield Mistake(
                    column.line,
                    f"column {column.name!r} of {table.name!r} does not say how it is stored",
                    (),
                    "add physicalType, for example bigint, numeric(14,2), text or timestamptz",
                )


def _check_source(run: ProductDefinition, domain: DomainDefinition) -> None:
    if run.source is None or run.source in domain.sources:
        return
    unknown = UnknownName.of("source", run.source, domain.sources)
    raise ContractError.of(
        display(run.path),
        [
            Mistake(
                run.line,
                f"domain {domain.name!r} has no source {run.source!r}",
                tuple(unknown.available),
                unknown.hint or f"add it to {display(domain.path)}",
            )
        ],
    )

"""Finds all domains and products of a folder; what is broken is reported and hides nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mesh_assets.contract import definition
from mesh_assets.contract.definition import DomainDefinition, ProductDefinition
from mesh_assets.contract.document import display
from mesh_assets.contract.loader import load
from mesh_assets.contract.model import Contract, TableContract
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


@dataclass(frozen=True)
class Discovery:
    """Everything found below a products folder.

    Attributes:
        domains: by name; only those whose definition is right.
        products: by name, sorted; only those whose contract and definition are right.
        broken: folders left out, and why.
    """

    domains: Mapping[str, DomainDefinition] = field(default_factory=dict)
    products: Mapping[ProductName, Product] = field(default_factory=dict)
    broken: tuple[tuple[Path, ContractError], ...] = ()

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
    return Discovery(found.domains, found.products, tuple(found.broken))


class _Found:
    def __init__(self) -> None:
        self.domains: dict[str, DomainDefinition] = {}
        self.products: dict[ProductName, Product] = {}
        self.broken: list[tuple[Path, ContractError]] = []
        self.published: dict[tuple[str, str, str], Product] = {}
        self.ids: dict[str, Product] = {}

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
                product = _product(inner, domain)
                self.claim(product)
            except ContractError as error:
                self.broken.append((inner, error))
            else:
                self.products[product.name] = product

    def claim(self, product: Product) -> None:
        """Refuse a second publisher of a source table and a second owner of a contract id."""
        contract = product.contract
        mistakes: list[Mistake] = []
        keys = [
            (contract.domain, product.definition.source, table.physical_name) for table in contract.tables
        ]
        for key, table in zip(keys, contract.tables, strict=True):
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
    if contract is not None:
        mistakes = [
            Mistake(
                table.line,
                f"table {table.name!r} does not say which table of the source it is",
                (),
                "add physicalName: schema.table",
            )
            for table in contract.tables
            if "." not in table.physical_name
        ]
        if mistakes:
            errors.append(ContractError.of(display(contract.path), mistakes))
    if errors or contract is None or run is None:
        joined = ContractError("\n".join(str(error) for error in errors))
        joined.mistakes = tuple(mistake for error in errors for mistake in error.mistakes)
        raise joined
    return Product(contract, run, folder)


def _check_source(run: ProductDefinition, domain: DomainDefinition) -> None:
    if run.source in domain.sources:
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

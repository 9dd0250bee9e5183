"""What a shift has to do: one source, the product tables that it feeds, and where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from mesh_assets.cdc.source import SourceConfig
from mesh_assets.contract.compatibility import Readers
from mesh_assets.contract.definition import CONTRACT_FILE, DEFINITION_FILE
from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.contract.model import TableContract
from mesh_assets.errors import ContractError, UnknownName
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName, publication_name, slot_name
from mesh_assets.readers import table_readers
from mesh_assets.settings import Settings

SUITES_FOLDER = "expectations"
"""Where a product's Great Expectations suites are, in its folder."""
_PRODUCT_FILES = (CONTRACT_FILE, DEFINITION_FILE)


@dataclass(frozen=True)
class Target:
    """One product table and the source table that feeds it.

    Attributes:
        source_table: ``schema.table`` at the source.
        key: the contract's primary key.
        changes_uri: its change log.
        current_uri: its current table.
        contract: what the product promises of it; None: nothing to hold it against.
        generation: in which both lie (:meth:`mesh_assets.names.Layout.table`).
    """

    name: ProductName
    table: str
    source_table: str
    key: tuple[str, ...]
    changes_uri: str
    current_uri: str
    contract: TableContract | None = None
    generation: int = 1

    def at(self, layout: Layout, generation: int) -> Target:
        """The same table where it lies in a generation."""
        return replace(
            self,
            changes_uri=layout.table(self.name, CHANGES, self.table, generation),
            current_uri=layout.table(self.name, CURRENT, self.table, generation),
            generation=generation,
        )


class Tables(Protocol):
    """What is tended together: a source's tables, or those of a domain's derived products."""

    @property
    def layout(self) -> Layout:
        """Where they lie."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """The product tables."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Version logs and other tables beside them."""


@dataclass(frozen=True)
class CapturePlan:
    """One source and everything that it feeds.

    Attributes:
        contract_hashes: by product, as they were when the plan was made.
        contract_files: contracts, definitions and suites of all products of the domain, also broken
            ones, and the fingerprint of each, to notice a change cheaply.
        definitions: the products as their folders define them; one that is missing has no rules.
        readers: who reads which tables of each product.
    """

    source: SourceConfig
    layout: Layout
    targets: tuple[Target, ...]
    contract_hashes: dict[ProductName, str]
    contract_files: dict[Path, str]
    definitions: Mapping[ProductName, Product] = field(default_factory=dict)
    readers: Mapping[ProductName, Readers] = field(default_factory=dict)

    @property
    def products(self) -> tuple[ProductName, ...]:
        """The products fed, sorted."""
        return tuple(sorted(self.contract_hashes))

    @property
    def shared(self) -> tuple[str, ...]:
        """Tables that are no product's own and are tended with them."""
        own = [uri for name in self.products for uri in beside(self.layout, name)]
        return (*own, self.part_uri("ledger"), self.layout.lineage())

    def part_uri(self, part: str) -> str:
        """A table of the source: ledger, parking, schemas or gaps."""
        return self.layout.source(self.source.domain, self.source.name, part)

    def contracts_changed(self) -> bool:
        """Whether the domain's products, one more or less included, differ from what the plan was made of."""
        folders = {path.parent.parent for path in self.contract_files if path.name in _PRODUCT_FILES}
        return {path: known for folder in folders for path, known in product_files(folder).items()} != (
            self.contract_files
        )


def beside(layout: Layout, name: ProductName) -> tuple[str, ...]:
    """Where a product's own tables beside its data lie."""
    return layout.versions(name), checks_uri(layout, name), statistics_uri(layout, name)


def statistics_uri(layout: Layout, name: ProductName) -> str:
    """Where the statistics of a product's columns lie: one row per refresh, table and column."""
    return layout.catalog(name, "statistics")


def checks_uri(layout: Layout, name: ProductName) -> str:
    """Where the outcomes of a product's quality checks lie."""
    return layout.catalog(name, "checks")


def product_files(domain_folder: Path) -> dict[Path, str]:
    """Contracts, definitions and suites of a domain's products, with their fingerprints."""
    patterns = (*_PRODUCT_FILES, f"{SUITES_FOLDER}/*.json")
    return {path: _fingerprint(path) for one in patterns for path in sorted(domain_folder.glob(f"*/{one}"))}


def _fingerprint(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def capture_plan(settings: Settings, discovery: Discovery, domain: str, source: str) -> CapturePlan:
    """Plan the capture of one source.

    Raises:
        UnknownName: if the domain or source does not exist, or feeds no product.
        SettingError: if the source's address is not known.
    """
    if domain not in discovery.domains:
        for folder, error in discovery.broken:
            if folder.name == domain:
                raise error
        raise UnknownName.of("domain", domain, discovery.domains)
    sources = discovery.domains[domain].sources
    if source not in sources:
        raise UnknownName.of(f"source in {domain}", source, sources)
    publishers = discovery.publishers(domain, source)
    if not publishers:
        broken = [error for folder, error in discovery.broken if folder.parent.name == domain]
        if broken:
            raise ContractError("\n".join(str(error) for error in broken))
        raise UnknownName(
            f"no product subscribes to source {domain}.{source}",
            hint=f"add a folder products/{domain}/<product> with contract.yaml and defs.yaml",
        )
    layout = Layout(settings.lake_root)
    targets = tuple(
        Target(
            product.name,
            table.name,
            source_table,
            table.key,
            layout.table(product.name, CHANGES, table.name),
            layout.table(product.name, CURRENT, table.name),
            table,
        )
        for source_table, (product, table) in sorted(publishers.items())
    )
    contracts = {product.name: product.contract for product, _ in publishers.values()}
    return CapturePlan(
        SourceConfig(
            domain=domain,
            name=source,
            url=settings.source_url(domain, source),
            tables=tuple(target.source_table for target in targets),
            slot=slot_name(domain, source),
            publication=publication_name(domain, source),
        ),
        layout,
        targets,
        {name: contract.hash for name, contract in contracts.items()},
        product_files(discovery.domains[domain].path.absolute().parent),
        {product.name: product for product, _ in publishers.values()},
        {name: table_readers(discovery, name) for name in contracts},
    )

"""Component types of ``products/<domain>/defs.yaml`` and ``products/<domain>/<product>/defs.yaml``.

A domain builds everything that it runs: the assets of its products, one capture shift per source,
its sensor and its checks. It loads every product folder by itself, so that a product with a mistake
is shown as such and its neighbours run on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Self

import dagster as dg
from dagster.components.core.component_tree import ComponentTree, ComponentTreeException
from pydantic import BaseModel

from mesh_assets.contract.definition import (
    CONTRACT_FILE,
    DEFINITION_FILE,
    DomainAttributes,
    ProductAttributes,
)
from mesh_assets.contract.definition import load_product as load_definition
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.loader import load as load_contract
from mesh_assets.errors import ContractError, MeshError, UnknownName
from mesh_assets.names import ProductName
from mesh_assets.orchestration.asset import asset_specs, broken_spec
from mesh_assets.orchestration.check import loads_check, parity_checks
from mesh_assets.orchestration.sensor import domain_sensor
from mesh_assets.orchestration.shift import capture_asset, capture_job
from mesh_assets.settings import Settings


def folder_definitions(folder: Path) -> dg.Definitions:
    """Load the component in one folder, and nothing beside it.

    Raises:
        ComponentTreeException: if the component's YAML is wrong.
        MeshError: if what it describes is wrong.
    """
    root = folder.parent
    while (root / DEFINITION_FILE).exists():
        root = root.parent
    module = ModuleType(".".join([root.name, *folder.relative_to(root).parts]))
    module.__path__ = [str(folder)]
    module.__file__ = None
    tree = ComponentTree(defs_module=module, project_root=root.parent)
    try:
        return tree.build_defs()
    except ComponentTreeException as error:
        # Dagster wraps what went wrong in the drawing of a tree; our errors say it better.
        if isinstance(cause := _root_cause(error), MeshError):
            raise cause from None
        raise


@dataclass(frozen=True)
class DataProduct(dg.Component):
    """A source-aligned data product: the tables of a contract, captured from a source of its domain."""

    attributes: ProductAttributes
    folder: Path

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The attributes that the YAML may hold."""
        return ProductAttributes

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What tools show about this type."""
        return dg.ComponentTypeSpec(
            description="A source-aligned data product: the tables of contract.yaml, captured from a source.",
            tags=["data product"],
        )

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the attributes; the contract is read when definitions are built."""
        model = ProductAttributes.model_validate(attributes.model_dump() if attributes else {})
        return cls(model, context.path)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The product's assets; its domain makes them materialisable.

        Raises:
            ContractError: naming file and line, if the contract is wrong.
        """
        name = ProductName(self.folder.parent.name, self.folder.name)
        product = Product(
            load_contract(self.folder / CONTRACT_FILE, name=name),
            load_definition(self.folder / DEFINITION_FILE),
            self.folder,
        )
        return dg.Definitions(assets=asset_specs(product, Settings()))


@dataclass(frozen=True)
class Domain(dg.Component):
    """A domain: its sources, and all products in the folders beside its ``defs.yaml``."""

    attributes: DomainAttributes
    folder: Path

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The attributes that the YAML may hold."""
        return DomainAttributes

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What tools show about this type."""
        return dg.ComponentTypeSpec(
            description="A domain: who owns it, its operational sources, and the products in its folders.",
            owners=["team:platform"],
            tags=["domain"],
        )

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the attributes; the products are read when definitions are built."""
        model = DomainAttributes.model_validate(attributes.model_dump() if attributes else {})
        return cls(model, context.path)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Everything that the domain runs.

        Raises:
            ContractError: naming file and line, if the domain's own definition is wrong.
        """
        return domain_definitions(discover(self.folder.parent), self.folder.name)


def domain_definitions(discovery: Discovery, domain: str) -> dg.Definitions:
    """Assets, shifts, checks and the sensor of one domain.

    Raises:
        ContractError: if the domain's own definition is wrong.
        UnknownName: if there is no such domain.
    """
    if domain not in discovery.domains:
        for folder, error in discovery.broken:
            if folder.name == domain:
                raise error
        raise UnknownName.of("domain", domain, discovery.domains)
    products = {name: product for name, product in discovery.products.items() if name.domain == domain}
    broken: dict[ProductName, MeshError] = {
        ProductName(domain, folder.name): error
        for folder, error in discovery.broken
        if folder.parent.name == domain
    }
    specs = _load_each(products, broken)
    shifts, jobs = [], []
    for source in sorted({product.definition.source for product in products.values()}):
        of_source = [
            spec
            for name, product_specs in specs.items()
            if products[name].definition.source == source
            for spec in product_specs
        ]
        if of_source:
            shifts.append(capture_asset(domain, source, of_source))
            jobs.append(capture_job(domain, source, of_source))
    loaded = [products[name] for name in specs]
    return dg.Definitions(
        assets=[*shifts, *(broken_spec(name, error) for name, error in broken.items())],
        asset_checks=[
            *parity_checks(loaded),
            *(loads_check(name, error) for name, error in broken.items()),
        ],
        jobs=jobs,
        sensors=[domain_sensor(domain, loaded, jobs, broken)],
        executor=dg.in_process_executor,
    )


def _load_each(
    products: Mapping[ProductName, Product], broken: dict[ProductName, MeshError]
) -> dict[ProductName, list[dg.AssetSpec]]:
    """Specs by product; one that fails to load goes to ``broken`` instead."""
    specs: dict[ProductName, list[dg.AssetSpec]] = {}
    for name, product in products.items():
        try:
            specs[name] = list(_product_specs(product))
        except MeshError as error:
            broken[name] = error
        except Exception as error:  # noqa: BLE001 - whatever one product's YAML triggers stays its own.
            cause = _root_cause(error)
            broken[name] = ContractError(f"{product.definition.path}: {type(cause).__name__}: {cause}")
    return specs


def _product_specs(product: Product) -> Iterator[dg.AssetSpec]:
    """The product's specs as its component builds them, its YAML's post-processing included."""
    yield from folder_definitions(product.folder).resolve_all_asset_specs()


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error

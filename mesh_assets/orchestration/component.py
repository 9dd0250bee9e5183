"""Component types of ``products/<domain>/defs.yaml`` and ``products/<domain>/<product>/defs.yaml``.

A domain builds everything that it runs: the assets of its products, one capture shift per source,
its sensor and its checks. It loads every product folder by itself, so that a product with a mistake
is shown as such and its neighbours run on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Self

import dagster as dg
from dagster.components.core.component_tree import ComponentTree, ComponentTreeException
from pydantic import BaseModel

from mesh_assets.contract.definition import DEFINITION_FILE, DomainAttributes, ProductAttributes
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.errors import ContractError, MeshError, UnknownName
from mesh_assets.names import ProductName
from mesh_assets.orchestration.asset import asset_specs, broken_spec
from mesh_assets.orchestration.check import loads_check, parity_checks, quality_checks
from mesh_assets.orchestration.derive import derive_asset, derive_job
from mesh_assets.orchestration.page import pages_job, pages_schedule
from mesh_assets.orchestration.rule import ListedRule, listed_rules
from mesh_assets.orchestration.sensor import domain_sensor
from mesh_assets.orchestration.shift import capture_asset, capture_job
from mesh_assets.settings import Settings

_FILES = (".yaml", ".yml", ".py", ".sql", ".json")

_found: dict[Path, tuple[object, Discovery]] = {}


def file_states(folder: Path) -> list[tuple[str, int, int] | None]:
    """Differs once any file below a folder that defines products does."""
    return [_file_state(file) for file in sorted(folder.rglob("*")) if file.suffix in _FILES]


def _file_state(file: Path) -> tuple[str, int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        status = file.stat()
        return str(file), status.st_mtime_ns, status.st_size
    return None


def discovered(products: Path) -> Discovery:
    """What is below a products folder, read again only if a file has changed."""
    folder = products.absolute()
    states = file_states(folder)
    if folder not in _found or _found[folder][0] != states:
        _found[folder] = states, discover(folder)
    return _found[folder][1]


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
    """A data product: the tables of a contract, captured from a source or derived from other products."""

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
            description=(
                "A data product: the tables of contract.yaml, captured from a source of its domain, or "
                "derived from other products by transform.py."
            ),
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
        product = discovered(self.folder.parent.parent).product(name)
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
        return domain_definitions(discovered(self.folder.parent), self.folder.name)


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
    rules = _loaded_rules(products, broken)
    specs = _load_each(products, broken)
    by_source: dict[str | None, list[dg.AssetSpec]] = {}
    for name, product_specs in specs.items():
        by_source.setdefault(products[name].definition.source, []).extend(product_specs)
    derived = by_source.pop(None, [])
    shifts, jobs = [], []
    for source, of_source in sorted(by_source.items(), key=lambda item: str(item[0])):
        shifts.append(capture_asset(domain, str(source), of_source))
        jobs.append(capture_job(domain, str(source), of_source))
    if derived:
        shifts.append(derive_asset(domain, derived))
        jobs.append(derive_job(domain, derived))
    loaded = [products[name] for name in specs]
    pages = pages_job(domain)
    return dg.Definitions(
        assets=[*shifts, *(broken_spec(name, error) for name, error in broken.items())],
        asset_checks=[
            *parity_checks(loaded),
            *quality_checks(loaded, rules),
            *(loads_check(name, error) for name, error in broken.items()),
        ],
        jobs=[*jobs, pages],
        schedules=[pages_schedule(domain, pages)],
        sensors=[domain_sensor(domain, loaded, jobs, broken, discovery)],
        executor=dg.in_process_executor,
    )


def _loaded_rules(
    products: Mapping[ProductName, Product], broken: dict[ProductName, MeshError]
) -> dict[ProductName, tuple[ListedRule, ...]]:
    """Quality rules by product; a product with a wrong one goes to ``broken`` instead."""
    rules: dict[ProductName, tuple[ListedRule, ...]] = {}
    listed = listed_rules(Settings())
    for name in products:
        found = listed.get(name, ())
        if isinstance(found, ContractError):
            broken[name] = found
        else:
            rules[name] = found
    return rules


def _load_each(
    products: Mapping[ProductName, Product], broken: dict[ProductName, MeshError]
) -> dict[ProductName, list[dg.AssetSpec]]:
    """Specs by product; one that fails to load goes to ``broken`` instead."""
    specs: dict[ProductName, list[dg.AssetSpec]] = {}
    for name, product in products.items():
        if name in broken:
            continue
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
    own = [product.name.domain, product.name.product]
    for spec in folder_definitions(product.folder).resolve_all_asset_specs():
        # What it is made of is there as well, as a stub.
        if list(spec.key.path[:2]) == own:
            yield spec


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error

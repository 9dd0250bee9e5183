"""What the next shifts will do about old versions, told by ``mesh validate`` before they run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from mesh_assets.cli.baseline import Baseline
from mesh_assets.contract import compatibility
from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.contract.keeping import files_of, kept_name
from mesh_assets.contract.model import Contract
from mesh_assets.contract.support import version_readers
from mesh_assets.errors import ContractError, MeshError
from mesh_assets.names import ProductName
from mesh_assets.readers import unnamed_readers


@dataclass(frozen=True)
class Stay:
    """An old version that the release of a new one keeps for its readers, or would have to.

    Attributes:
        name: of the product that keeps it.
        old: its contract.
        new: the version that is released.
        pinned, unnamed: its readers that name the version, and those that name none.
        problem: why it cannot be kept; None if it can.
    """

    name: ProductName
    old: Contract
    new: str
    pinned: tuple[ProductName, ...]
    unnamed: tuple[ProductName, ...]
    problem: ContractError | None

    @property
    def readers(self) -> tuple[ProductName, ...]:
        """All of them, sorted."""
        return tuple(sorted({*self.pinned, *self.unnamed}))


def stays(discovery: Discovery, before: Baseline) -> dict[ProductName, Stay]:
    """Product -> its old version that will be kept, or cannot be and is read."""
    found: dict[ProductName, Stay] = {}
    for name, product in discovery.products.items():
        # What cannot be read is told where the product itself is checked.
        with suppress(MeshError):
            old = before.contract(name)
            if old is not None and (stay := _stay(discovery, product, old)) is not None:
                found[name] = stay
    return found


def _stay(discovery: Discovery, product: Product, old: Contract) -> Stay | None:
    kept, new = kept_name(old), product.contract
    if kept is None or not compatibility.raised(old, new) or old.ended:
        return None
    pinned, unnamed = version_readers(discovery, kept), tuple(unnamed_readers(discovery, old, new))
    if kept in discovery.products or not (pinned or unnamed):
        return None
    problem: ContractError | None = None
    try:
        # Of a derived product what it was made by is recorded where it was released.
        if not product.derived:
            files_of(old, {}, derived=False, now=new)
    except ContractError as error:
        problem = error
    return Stay(kept, old, new.version, pinned, unnamed, problem)


def awaiting(discovery: Discovery, kept: Mapping[ProductName, Stay]) -> dict[ProductName, str]:
    """The products that are refused only until old versions are kept, and what they wait for."""
    errors = {ProductName(folder.parent.name, folder.name): error for folder, error in discovery.broken}
    found: dict[ProductName, str] = {}
    # What one waits for may wait itself.
    while more := {
        name: "; ".join(reasons)
        for name, product in discovery.refused.items()
        if name not in found
        and (reasons := _reasons(product, kept, found))
        and len(reasons) == len(errors[name].mistakes)
    }:
        found |= more
    return found


def _reasons(
    product: Product, kept: Mapping[ProductName, Stay], waiting: Mapping[ProductName, str]
) -> list[str]:
    found = []
    for one in product.definition.inputs:
        stay = kept.get(one.product)
        if stay is not None and stay.problem is None and product.name in stay.pinned:
            found.append(f"{stay.name}, which is kept as soon as {one.product} {stay.new} is released")
        elif one.product in waiting:
            found.append(f"{one.product}, which waits for what it reads")
    return found


def as_before(discovery: Discovery, kept: Mapping[ProductName, Stay]) -> Discovery:
    """The products with the old contracts of those whose old version will be kept."""
    old = {
        name: replace(discovery.products[name], contract=stay.old)
        for name, stay in kept.items()
        if stay.problem is None
    }
    return replace(discovery, products={**discovery.products, **old})

"""How long an old version stays beside the new one: who reads it, until when, and who removes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.contract.document import display
from mesh_assets.names import ProductName


@dataclass(frozen=True)
class Support:
    """How a kept version stands.

    Attributes:
        product: the product that it is an old version of.
        version: the version that it keeps.
        readers: who reads it, sorted.
        until: the last day of its support; None: as long as it is read.
        folder: where it is defined.
        by_mesh: the mesh wrote it, nobody has edited it since, and the mesh can remove it.
    """

    product: ProductName
    version: str
    readers: tuple[ProductName, ...]
    until: date | None
    folder: Path
    by_mesh: bool

    @property
    def may_go(self) -> bool:
        """Whether nobody reads it any more."""
        return not self.readers

    @property
    def fate(self) -> str:
        """What becomes of it, in words."""
        if not self.may_go:
            end = f"until {self.until}" if self.until else "as long as they read it"
            return f"for {', '.join(map(str, self.readers))}, {end}"
        if self.by_mesh:
            return f"nobody reads it any more: the next shift of {self.product} removes it"
        return f"nobody reads it any more: remove {display(self.folder)}; what it held stays in the lake"


def support(discovery: Discovery, product: Product) -> Support | None:
    """How an old version stands; None if the product keeps none."""
    keeps, note = product.name.keeps, discovery.kept.get(product.name)
    if keeps is None or (note is None and keeps[0] not in discovery.products):
        return None
    return Support(
        keeps[0],
        product.contract.version,
        version_readers(discovery, product.name),
        product.contract.last_day,
        product.folder,
        note is not None and note.untouched(product.folder) and os.access(product.folder.parent, os.W_OK),
    )


def version_readers(discovery: Discovery, kept: ProductName) -> tuple[ProductName, ...]:
    """The products that read a version that is, or could be, kept; those refused are among them."""
    assert kept.keeps is not None  # It is named so.
    product, number = kept.keeps
    found = {
        consumer.name
        for consumer in (*discovery.products.values(), *discovery.refused.values())
        for one in consumer.definition.inputs
        if one.product == kept or (one.product == product and one.version == number)
    }
    return tuple(sorted(found))

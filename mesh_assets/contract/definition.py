"""How domains and products are run: ``products/<domain>/defs.yaml`` and the one of each product.

Dagster reads the same files as components; the attribute models here are the one definition of
what they may hold, and this module knows nothing of Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mesh_assets.contract import document as yaml_document
from mesh_assets.contract import structure
from mesh_assets.contract.check import valid_owner
from mesh_assets.contract.document import Document, mapping, text
from mesh_assets.names import ProductName, valid_part

DOMAIN_TYPE = "mesh_assets.orchestration.Domain"
PRODUCT_TYPE = "mesh_assets.orchestration.DataProduct"
CONTRACT_FILE = "contract.yaml"
DEFINITION_FILE = "defs.yaml"


class SourceAttributes(BaseModel):
    """An operational source of a domain; its address and credentials are settings, never here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["postgres"] = Field(description="What the source is.")
    description: str = Field(default="", description="What the application is for, in business words.")


class DomainAttributes(BaseModel):
    """Attributes of ``products/<domain>/defs.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field(description="What the domain is responsible for.")
    owner: str = Field(description="team:<name> or an e-mail address.")
    sources: dict[str, SourceAttributes] = Field(
        default_factory=dict, description="Operational sources by name."
    )


class ProductAttributes(BaseModel):
    """Attributes of ``products/<domain>/<product>/defs.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="The domain's source whose tables the product publishes.")


class _DefinitionFile(BaseModel):
    """What Dagster allows at the top of a component file."""

    model_config = ConfigDict(extra="forbid")

    type: str
    attributes: dict[str, Any]
    template_vars_module: str | None = None
    requirements: dict[str, Any] | None = None
    post_processing: dict[str, Any] | None = None


_NOUNS = {
    "_DefinitionFile": "a definition",
    "DomainAttributes": "a domain",
    "ProductAttributes": "a product",
    "SourceAttributes": "a source",
}


@dataclass(frozen=True)
class SourceDefinition:
    """An operational source of a domain.

    Attributes:
        name: unique in its domain.
        kind: ``postgres``.
        line: where it stands in the domain's definition.
    """

    name: str
    kind: str
    description: str = ""
    line: int = field(default=1, compare=False)


@dataclass(frozen=True)
class DomainDefinition:
    """A domain: who owns it and what it captures from."""

    name: str
    description: str
    owner: str
    sources: Mapping[str, SourceDefinition] = field(default_factory=dict, hash=False)
    path: Path = field(default=Path(), compare=False)


@dataclass(frozen=True)
class ProductDefinition:
    """How a product is run.

    Attributes:
        name: the product.
        source: the source of its domain that it is captured from.
        line: where the source is named.
    """

    name: ProductName
    source: str
    path: Path = field(default=Path(), compare=False)
    line: int = field(default=1, compare=False)


def load_domain(path: Path | str) -> DomainDefinition:
    """Read ``products/<domain>/defs.yaml``; the folder's name is the domain's.

    Raises:
        ContractError: naming file, line and what is wrong, of every mistake.
    """
    document = _read(Path(path), DOMAIN_TYPE, DomainAttributes)
    name = document.path.absolute().parent.name
    attributes = mapping(mapping(document.data).get("attributes"))
    if not valid_part(name):
        document.add(
            (), f"the folder {name!r} cannot name a domain", hint="use a-z, 0-9 and _, a letter first"
        )
    owner = text(attributes.get("owner"))
    if owner and not valid_owner(owner):
        document.add(
            ("attributes", "owner"),
            f"{owner!r} is not an owner",
            hint="write team:<name> or an e-mail address",
        )
    for source in mapping(attributes.get("sources")):
        location = ("attributes", "sources", source)
        if not valid_part(source):
            document.add(
                location, f"{source!r} cannot name a source", hint="use a-z, 0-9 and _, a letter first"
            )
    document.require_no_mistake()
    model = DomainAttributes.model_validate(attributes)
    return DomainDefinition(
        name=name,
        description=" ".join(model.description.split()),
        owner=model.owner,
        sources={
            source: SourceDefinition(
                source,
                value.kind,
                " ".join(value.description.split()),
                document.line(("attributes", "sources", source)),
            )
            for source, value in model.sources.items()
        },
        path=document.path,
    )


def load_product(path: Path | str) -> ProductDefinition:
    """Read ``products/<domain>/<product>/defs.yaml``; the folders' names are the product's.

    Raises:
        ContractError: naming file, line and what is wrong, of every mistake.
    """
    document = _read(Path(path), PRODUCT_TYPE, ProductAttributes)
    document.require_no_mistake()
    model = ProductAttributes.model_validate(document.data["attributes"])
    folder = document.path.absolute().parent
    return ProductDefinition(
        name=ProductName(folder.parent.name, folder.name),
        source=model.source,
        path=document.path,
        line=document.line(("attributes", "source")),
    )


def _read(path: Path, component: str, attributes: type[BaseModel]) -> Document:
    document = yaml_document.read(path)
    if document.data is None:
        document.add((), "the file is empty", hint=f"start it with type: {component}")
        document.require_no_mistake()
    structure.check(document, _DefinitionFile, _NOUNS)
    data = mapping(document.data)
    kind = text(data.get("type"))
    if kind and kind != component:
        document.add(
            ("type",), f"type {kind!r} is not what this folder holds", allowed=[component], given=kind
        )
    if isinstance(data.get("attributes"), dict):
        structure.check(document, attributes, _NOUNS, ("attributes",))
    return document

"""How domains and products are run: ``products/<domain>/defs.yaml`` and the one of each product.

Dagster reads the same files as components; the attribute models here are the one definition of
what they may hold, and this module knows nothing of Dagster.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mesh_assets.contract import document as yaml_document
from mesh_assets.contract import structure
from mesh_assets.contract.check import valid_owner
from mesh_assets.contract.document import Document, Location, mapping, text
from mesh_assets.errors import UnknownName
from mesh_assets.names import ProductName, valid_part

DOMAIN_TYPE = "mesh_assets.orchestration.Domain"
PRODUCT_TYPE = "mesh_assets.orchestration.DataProduct"
CONTRACT_FILE = "contract.yaml"
DEFINITION_FILE = "defs.yaml"
TRANSFORM_FILE = "transform.py"
TRANSFORM_FUNCTION = "transform"
EXACT_SUFFIX = "_exact"
"""``<column>_exact`` is, in a transform's frames, the text of a value outside of the column's type."""
_MEBIBYTE = 1 << 20


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


class ThroughAttributes(BaseModel):
    """How an input's rows belong to rows of another input, which has a key path of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="The other input, as it is called here.")
    # Not "on": YAML 1.1, which Dagster reads, takes that word for true.
    by: dict[str, str] = Field(description="This input's column: the equal column of the other one.")


class InputAttributes(BaseModel):
    """A product that a derived product subscribes to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    product: str = Field(description="The product read: domain.product.")
    table: str | None = Field(default=None, description="Its table; the default table may be left out.")
    version: int | None = Field(
        default=None,
        gt=0,
        description="Major version of its contract; read as long as it is kept. The newest if left out.",
    )
    key: dict[str, str] | None = Field(
        default=None,
        description="Key path: column of the output's primary key: equal column of the input. Without a "
        "key path every change of the input means a whole recomputation.",
    )
    through: ThroughAttributes | None = Field(
        default=None, description="Key path by way of another input, instead of key."
    )
    exact: list[str] = Field(
        default_factory=list,
        description="Columns in which the transform minds values outside of their type (an infinite date, "
        "a NaN): it gets null there, and their text as <column>_exact.",
    )


class LimitAttributes(BaseModel):
    """What one run of a transform may take before it is ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_seconds: float = Field(default=300.0, gt=0, description="Time of one run of the transform.")
    max_memory_mb: int = Field(default=2048, gt=0, description="Memory of its process, in MiB.")


class ProductAttributes(BaseModel):
    """Attributes of ``products/<domain>/<product>/defs.yaml``: a source, or inputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None = Field(
        default=None, description="The domain's source whose tables the product publishes."
    )
    inputs: dict[str, InputAttributes] | None = Field(
        default=None, description="The products that a derived product is made of, by a name of their own."
    )
    transform: str | None = Field(
        default=None, description=f"File with the function transform(inputs); {TRANSFORM_FILE} if left out."
    )
    limits: LimitAttributes | None = Field(
        default=None, description="What one run of the transform may take before it is ended."
    )


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
    "InputAttributes": "an input",
    "LimitAttributes": "a set of limits",
    "ProductAttributes": "a product",
    "SourceAttributes": "a source",
    "ThroughAttributes": "a way through an input",
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
class Through:
    """How an input's rows belong to rows of another input.

    Attributes:
        input: the other input's name.
        on: this input's column -> the equal column of the other one.
    """

    input: str
    on: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class InputDefinition:
    """A table that a derived product is made of.

    Attributes:
        name: what the transform calls it.
        product: the product read.
        table: its table; "" stands for its default table until discovery has filled it in.
        key: column of the output's primary key -> equal column of this input; None without one.
        through: the key path by way of another input; None without one.
        version: the major version asked for; None for the newest. Discovery makes ``product`` the one
            that keeps it.
        line: where it stands in the definition.
        exact: columns of which the transform gets the texts of values outside of their type, too.
    """

    name: str
    product: ProductName
    table: str
    key: Mapping[str, str] | None = field(default=None, hash=False)
    through: Through | None = None
    version: int | None = None
    line: int = field(default=1, compare=False)
    exact: tuple[str, ...] = ()

    @property
    def keyed(self) -> bool:
        """Whether its changes tell which rows of the output they affect."""
        return self.key is not None or self.through is not None


@dataclass(frozen=True)
class Limits:
    """What one run of a transform may take before it is ended."""

    max_seconds: float = 300.0
    max_memory_bytes: int = 2048 * _MEBIBYTE


@dataclass(frozen=True)
class ProductDefinition:
    """How a product is run.

    Attributes:
        name: the product.
        source: the source of its domain that it is captured from; None if it is derived.
        inputs: what a derived product is made of, in the order of the file; else empty.
        transform: the file of a derived product's function; else None.
        limits: what one run of the transform may take.
        line: where the source is named, or the inputs are.
        lines: the line of each entry of the file.
    """

    name: ProductName
    source: str | None
    path: Path = field(default=Path(), compare=False)
    line: int = field(default=1, compare=False)
    inputs: tuple[InputDefinition, ...] = ()
    transform: Path | None = None
    limits: Limits = Limits()
    lines: Mapping[Location, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def derived(self) -> bool:
        """Whether it is made of other products instead of being captured."""
        return self.source is None

    def captured_source(self) -> str:
        """The source that it is captured from.

        Raises:
            UnknownName: if it is derived.
        """
        if self.source is None:
            raise UnknownName(
                f"{self.name} is derived: it has no source",
                hint="it is made of " + ", ".join(str(one.product) for one in self.inputs),
            )
        return self.source

    def input(self, name: str) -> InputDefinition:
        """An input by the name that the transform calls it.

        Raises:
            UnknownName: if there is none of that name.
        """
        for one in self.inputs:
            if one.name == name:
                return one
        raise UnknownName.of(f"input of {self.name}", name, [one.name for one in self.inputs])

    def line_of(self, *location: str) -> int:
        """The line of an entry below ``attributes``, or of the nearest enclosing one that exists."""
        whole: Location = ("attributes", *location)
        while whole and whole not in self.lines:
            whole = whole[:-1]
        return self.lines.get(whole, 1)


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
    attributes = mapping(mapping(document.data).get("attributes"))
    folder = document.path.absolute().parent
    _check_product(document, attributes, folder)
    document.require_no_mistake()
    model = ProductAttributes.model_validate(attributes)
    name = ProductName(folder.parent.name, folder.name)
    if model.inputs is None:
        return ProductDefinition(
            name=name,
            source=model.source,
            path=document.path,
            line=document.line(("attributes", "source")),
            lines=document.lines,
        )
    limits = model.limits or LimitAttributes()
    return ProductDefinition(
        name=name,
        source=None,
        path=document.path,
        line=document.line(("attributes", "inputs")),
        inputs=tuple(
            InputDefinition(
                called,
                ProductName.parse(given.product),
                given.table or "",
                given.key,
                Through(given.through.input, given.through.by) if given.through else None,
                given.version,
                document.line(("attributes", "inputs", called)),
                tuple(given.exact),
            )
            for called, given in model.inputs.items()
        ),
        transform=folder / (model.transform or TRANSFORM_FILE),
        limits=Limits(limits.max_seconds, limits.max_memory_mb * _MEBIBYTE),
        lines=document.lines,
    )


def _check_product(document: Document, attributes: Mapping[str, Any], folder: Path) -> None:
    location: Location = ("attributes",)
    if not attributes:
        return
    source, inputs = attributes.get("source"), attributes.get("inputs")
    if source is not None and inputs is not None:
        document.add(
            (*location, "inputs"),
            "a product has a source or inputs, not both",
            hint="what is captured and what is derived are two products",
        )
    if inputs is None:
        if source is None:
            document.add(
                location,
                "a product needs a source or inputs",
                hint="write source: <name>, or inputs: with the products that it is made of",
            )
        for field_name in ("transform", "limits"):
            if attributes.get(field_name) is not None:
                document.add(
                    (*location, field_name),
                    f"{field_name!r} is for derived products, which have inputs",
                    hint="remove it",
                )
        return
    if inputs == {}:
        document.add((*location, "inputs"), "a derived product needs at least one input")
    for name, given in mapping(inputs).items():
        _check_input(document, name, mapping(given), mapping(inputs))
    for limit, value in mapping(attributes.get("limits")).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            document.add((*location, "limits", limit), f"{limit} must be more than 0, not {value}")
    _check_transform(document, attributes.get("transform"), folder)


def _check_input(document: Document, name: str, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    location: Location = ("attributes", "inputs", name)
    if not valid_part(name):
        document.add(location, f"{name!r} cannot name an input", hint="use a-z, 0-9 and _, a letter first")
    product = text(given.get("product"))
    if product:
        try:
            ProductName.parse(product)
        except UnknownName as error:
            document.add((*location, "product"), error.message, hint=error.hint)
    version = given.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version < 1:
        document.add((*location, "version"), f"version must be at least 1, not {version}")
    for path in ("key", "through"):
        if given.get(path) == {}:
            document.add((*location, path), f"{path!r} names no column", hint="fill it, or leave it out")
    through = mapping(given.get("through"))
    if given.get("key") is not None and through:
        document.add(
            (*location, "through"),
            f"input {name!r} has two key paths",
            hint="give it key or through, not both",
        )
    if through.get("by") == {}:
        document.add((*location, "through", "by"), "'by' names no column")
    other = text(through.get("input"))
    if not other:
        return
    if other not in inputs:
        document.add(
            (*location, "through", "input"),
            f"there is no input {other!r}",
            allowed=sorted(inputs),
            given=other,
        )
        return
    way = [name]
    while other not in way:
        way.append(other)
        following = mapping(inputs.get(other))
        other = text(mapping(following.get("through")).get("input"))
        if not other:
            if not following.get("key"):
                document.add(
                    (*location, "through"),
                    f"input {way[-1]!r} has no key path, so none leads through it",
                    hint=f"give {way[-1]!r} a key, or leave through out",
                )
            return
        if other not in inputs:
            return
    document.add(
        (*location, "through"),
        f"the key path goes in a circle: {' -> '.join([*way, other])}",
        hint="one of these inputs needs a key",
    )


def _check_transform(document: Document, given: object, folder: Path) -> None:
    """The transform's file must be there, be Python, and define the function; it is not run."""
    location: Location = ("attributes", "transform" if given else "inputs")
    if given is not None and not isinstance(given, str):
        return
    path = folder / (given or TRANSFORM_FILE)
    if not path.resolve().is_relative_to(folder.resolve()):
        document.add(location, f"{given} lies outside of the product's folder", hint="keep it in there")
        return
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        document.add(
            location,
            f"{yaml_document.display(path)} is missing",
            hint=f"create it with a function {TRANSFORM_FUNCTION}(inputs)",
        )
    except OSError as error:
        document.add(location, f"{yaml_document.display(path)} cannot be read: {error.strerror}")
    except (SyntaxError, ValueError) as error:
        line = (isinstance(error, SyntaxError) and error.lineno) or 1
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        document.add(location, f"{yaml_document.display(path)}:{line}: not Python: {message}")
    else:
        if TRANSFORM_FUNCTION not in _names(tree):
            document.add(
                location,
                f"{yaml_document.display(path)} defines no function {TRANSFORM_FUNCTION!r}",
                hint=f"write def {TRANSFORM_FUNCTION}(inputs): …",
            )


def _names(tree: ast.Module) -> set[str]:
    """What a module defines or imports at its top."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


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

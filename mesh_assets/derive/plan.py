"""What is derived of what: one derived product, its inputs, and where all of it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as package_version
from pathlib import Path

import polars as pl

from mesh_assets.contract.compatibility import Readers
from mesh_assets.contract.definition import EXACT_SUFFIX, Limits, Through
from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.contract.loader import load
from mesh_assets.errors import ContractError, UnknownName
from mesh_assets.lake.storage import storage_of
from mesh_assets.lake.version import VersionLog, VersionRow, generation_at
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName
from mesh_assets.quality.concealment import restricted
from mesh_assets.readers import table_readers
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import Target, product_files

_REFUSAL_FILE = "refused.json"
_HASH_LETTERS = 16
_HOME = "derive"


@dataclass(frozen=True)
class Subscription:
    """One input of a derived product: a table of another product.

    Attributes:
        name: what the transform calls it.
        key: column of the output's key -> equal column of the input; None without such a key path.
        through: the key path by way of another input, instead.
        exact: columns of which the transform gets the texts of values outside of their type, too.
        restricted: columns whose values nobody is told of.
    """

    name: str
    product: ProductName
    table: str
    layout: Layout
    key: Mapping[str, str] | None = field(default=None, hash=False)
    through: Through | None = None
    exact: tuple[str, ...] = ()
    restricted: frozenset[str] = frozenset()

    def changes_uri(self, row: VersionRow | None) -> str:
        """The input's change log as of one of its versions."""
        return self._uri(CHANGES, row)

    def current_uri(self, row: VersionRow | None) -> str:
        """The input's current table as of one of its versions."""
        return self._uri(CURRENT, row)

    def _uri(self, kind: str, row: VersionRow | None) -> str:
        return self.layout.table(self.product, kind, self.table, generation_at(row, self.table))

    def schema(self, columns: Mapping[str, pl.DataType]) -> pl.Schema:
        """What the transform gets of it, if its table has these columns."""
        return pl.Schema({**columns, **{name + EXACT_SUFFIX: pl.String() for name in self.exact}})

    def column(self, name: str) -> str:
        """The column of the table that a column of :meth:`schema` belongs to."""
        return {text + EXACT_SUFFIX: text for text in self.exact}.get(name, name)


@dataclass(frozen=True)
class DerivePlan:
    """One derived product.

    Attributes:
        product: its contract and definition.
        inputs: what it is made of.
        code_hash: of transform and inputs, as they were when the plan was made.
        contract_files: contracts and definitions of the domain and of those that it reads from, and the
            product's transform, with the fingerprint of each, to notice a change cheaply.
        readers: who reads which of its tables.
        home: the installation's folder for derive shifts: claims, scratch space, errors.
    """

    product: Product
    layout: Layout
    inputs: tuple[Subscription, ...]
    code_hash: str
    contract_files: Mapping[Path, str] = field(hash=False)
    readers: Readers = field(default_factory=dict, hash=False)
    home: Path = field(kw_only=True)

    @property
    def name(self) -> ProductName:
        """``domain.product``."""
        return self.product.name

    @property
    def products(self) -> tuple[ProductName, ...]:
        """The one product."""
        return (self.name,)

    @property
    def contract_hash(self) -> str:
        """Of the contract that the plan was made under."""
        return self.product.contract.hash

    @property
    def contract_hashes(self) -> dict[ProductName, str]:
        """By product, as for a capture plan."""
        return {self.name: self.contract_hash}

    @property
    def code_version(self) -> str:
        """What a version row says of the code that made it: this program's version and the transform's."""
        return f"{package_version('mesh-assets')}+{self.code_hash[:_HASH_LETTERS]}"

    @property
    def transform(self) -> Path:
        """The file with the function."""
        path = self.product.definition.transform
        assert path is not None  # It is a derived product.
        return path

    @property
    def limits(self) -> Limits:
        """What one run of the transform may take."""
        return self.product.definition.limits

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Its own tables, each in its first generation.

        In which it goes on is chosen when they are opened (:func:`mesh_assets.derive.generation.going_on`).
        """
        layout, name = self.layout, self.name
        return tuple(
            Target(
                name,
                table.name,
                "",
                table.key,
                layout.table(name, CHANGES, table.name),
                layout.table(name, CURRENT, table.name),
                table,
            )
            for table in self.product.contract.tables
        )

    @property
    def single_table(self) -> str:
        """The table that a transform makes which returns a single frame: there is only one then."""
        return self.product.contract.tables[0].name

    @property
    def versions_uri(self) -> str:
        """Its version log."""
        return self.layout.versions(self.name)

    def held_uris(self) -> list[str]:
        """The change logs and current tables that there are, of every generation; none is opened."""
        root = self.layout.product(self.name)
        storage = storage_of(root)
        return [f"{root}/{kind}/{one}" for kind in (CHANGES, CURRENT) for one in storage.folders(kind)]

    @property
    def input_products(self) -> tuple[ProductName, ...]:
        """The products that it is made of, sorted, each once."""
        return tuple(sorted({one.product for one in self.inputs}))

    @cached_property
    def unit(self) -> tuple[str, ...]:
        """The columns of the output's key by which it is recomputed in parts; empty: as a whole only.

        Those that every input's key path leads to and every table's key has, in the first table's order.
        """
        named = {one.name: one for one in self.inputs}
        keys = [table.key for table in self.product.contract.tables]

        def reached(one: Subscription) -> set[str]:
            if one.key is not None:
                return set(one.key)
            return set() if one.through is None else reached(named[one.through.input])

        paths = [reached(one) for one in self.inputs]
        return tuple(
            name
            for name in keys[0]
            if all(name in path for path in paths) and all(name in key for key in keys)
        )

    def contracts_changed(self) -> bool:
        """Whether what the plan was made of differs: own and read domains' products, or the transform."""
        return _files(self.product) != self.contract_files

    def contract_changed(self) -> bool:
        """Whether the product's own contract says something else by now, or nothing."""
        contract = self.product.contract
        try:
            return load(contract.path, name=contract.name).hash != contract.hash
        except ContractError:
            return True

    # -- what keeps it from running ---------------------------------------------------------------

    def pending(self) -> str | None:
        """Why a derive shift has something to do here; None if it has not. Reads version logs only."""
        heads = {name: VersionLog(self.layout.versions(name)).latest() for name in self.input_products}
        last = VersionLog(self.versions_uri).latest()
        reason = self.due(last, {name: row.version for name, row in heads.items() if row is not None})
        refusal = self.refusal()
        if reason is not None and refusal is not None and refusal["state"] == self.state(heads):
            return None
        return reason

    def due(self, last: VersionRow | None, heads: Mapping[ProductName, int]) -> str | None:
        """Why the product is not what its inputs' newest versions (``heads``) make of it; None if it is."""
        if heads.keys() < set(self.input_products):
            return None
        if last is None:
            return "it was never made"
        if last.contract_hash != self.contract_hash:
            return "its contract changed"
        if last.code_version.partition("+")[2] != self.code_version.partition("+")[2]:
            return "its transform changed"
        for name in self.input_products:
            held = last.parents.get(str(name), 0)
            if held != heads[name]:
                return f"{name} is at version {heads[name]}, it was made of {held}"
        return None

    def state(self, heads: Mapping[ProductName, VersionRow | None]) -> str:
        """What an attempt depends on: two with the same state end the same way."""
        versions = {str(name): row.version if row else 0 for name, row in sorted(heads.items())}
        return json.dumps([self.code_hash, self.contract_hash, versions], sort_keys=True)

    def refusal(self) -> dict[str, str] | None:
        """Why the last attempt to make it failed: ``state``, ``error`` and ``at``; None if it did not."""
        try:
            text = storage_of(self.layout.product(self.name)).read(_REFUSAL_FILE)
        except FileNotFoundError:
            return None
        found: dict[str, str] = json.loads(text)
        return found

    def refuse(self, state: str, error: str, at: str) -> None:
        """Remember why an attempt failed."""
        record = json.dumps({"state": state, "error": error, "at": at}, indent=2) + "\n"
        storage = storage_of(self.layout.product(self.name))
        storage.prepare()
        storage.write(_REFUSAL_FILE, record.encode())

    def forgive(self) -> None:
        """Forget it: an attempt succeeded."""
        if self.refusal() is not None:
            storage_of(self.layout.product(self.name)).remove([_REFUSAL_FILE])


def _files(product: Product) -> dict[Path, str]:
    root = product.folder.absolute().parent.parent
    domains = {product.name.domain, *(one.product.domain for one in product.definition.inputs)}
    files: dict[Path, str] = {}
    for domain in sorted(domains):
        files |= product_files(root / domain)
    path = product.definition.transform
    assert path is not None  # It is a derived product.
    try:
        files[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        files[path] = ""
    return files


def derive_plan(settings: Settings, discovery: Discovery, name: ProductName) -> DerivePlan:
    """Plan one derived product.

    Raises:
        UnknownName: if there is no such product, or it is captured.
        ContractError: if its folder is broken.
    """
    product = discovery.product(name)
    if not product.derived:
        raise UnknownName(
            f"{name} is not derived: it is captured from {product.definition.source}",
            available=[str(one.name) for one in discovery.derived()],
        )
    layout = Layout(settings.lake_root)
    inputs = tuple(
        Subscription(
            one.name,
            one.product,
            one.table,
            layout,
            one.key,
            one.through,
            one.exact,
            _restricted(discovery, one.product, one.table),
        )
        for one in product.definition.inputs
    )
    return DerivePlan(
        product,
        layout,
        inputs,
        product.code_hash,
        _files(product),
        table_readers(discovery, name),
        home=settings.home.absolute() / _HOME,
    )


def _restricted(discovery: Discovery, name: ProductName, table: str) -> frozenset[str]:
    """The columns of an input whose values nobody is told of."""
    known = discovery.products.get(name) or discovery.refused.get(name)
    return restricted(known.contract.table(table)) if known else frozenset()


def derive_plans(settings: Settings, discovery: Discovery, domain: str) -> Sequence[DerivePlan]:
    """Plan all derived products of a domain, each after those that it is made of."""
    return [derive_plan(settings, discovery, one.name) for one in discovery.derived(domain)]

"""An old major version of a product, kept beside the new one as a product of its own.

``sales.orders_v1`` is derived: from the new version, if that is captured, or from the same inputs
as before by the same transform. So it is made, checked and explained like any other product, and
what the new version calls otherwise its transform can call by the old name.

The shift that releases a new version keeps the old one so, for those who read it
(:mod:`mesh_assets.shift.release`); ``mesh keep`` does it ahead, for a team that wants to edit it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from mesh_assets.contract import standard
from mesh_assets.contract.compatibility import major
from mesh_assets.contract.definition import (
    CONTRACT_FILE,
    DEFINITION_FILE,
    EXACT_SUFFIX,
    PRODUCT_TYPE,
    TRANSFORM_FILE,
)
from mesh_assets.contract.discovery import Product
from mesh_assets.contract.kept import KEPT_FILE
from mesh_assets.contract.model import END_OF_SUPPORT, Contract, TableContract
from mesh_assets.contract.physical import PhysicalType
from mesh_assets.errors import ContractError
from mesh_assets.names import ProductName

_PASSED_OVER = ("__pycache__",)
_ALWAYS_EXACT = frozenset(
    [
        *("smallint", "integer", "bigint", "real", "double precision", "boolean"),
        *("text", "character", "character varying", "uuid", "bytea", "json", "jsonb"),
    ]
)
"""Types none of whose values is outside of what the lake holds; arrays of them may be."""


def kept_name(contract: Contract) -> ProductName | None:
    """The product that keeps the version that a contract is; None unless that starts with a number from 1."""
    number = major(contract.version)
    return contract.name.kept_version(int(number)) if number.isdecimal() and int(number) else None


def kept_files(product: Product, until: date | None = None, now: Contract | None = None) -> dict[str, bytes]:
    """The files of a product that keeps the version that another one is at, by path in its folder.

    Args:
        product: as it is before it changes.
        until: the last day of support; None: as long as its folder is there.
        now: what it promises after the change, if that is known.

    Raises:
        ContractError: if its version cannot be kept.
    """
    others = folder_files(product.folder)
    return files_of(product.contract, others, derived=product.derived, until=until, now=now)


def files_of(
    contract: Contract,
    others: Mapping[str, bytes],
    *,
    derived: bool,
    until: date | None = None,
    now: Contract | None = None,
) -> dict[str, bytes]:
    """The same, of a version that may be gone from its folder.

    Args:
        contract: of the version to keep.
        others: what else was in the folder (:func:`folder_files`).
        derived: whether the product is derived.
        until: the last day of support.
        now: what the product promises by now; the version itself if left out.

    Raises:
        ContractError: if it cannot be kept.
    """
    name = kept_name(contract)
    if name is None:
        raise ContractError(
            f"version {contract.version!r} of {contract.name} has no major number to be kept by",
            hint="write versions as in 1.0.0",
        )
    files = {path: data for path, data in others.items() if path != KEPT_FILE}
    files[CONTRACT_FILE] = _contract(contract, name, until).encode()
    if not derived:
        texts = _texts(contract, now)
        files[DEFINITION_FILE] = _definition(contract, now or contract, texts).encode()
        files[TRANSFORM_FILE] = _transform(contract, texts).encode()
    elif not {DEFINITION_FILE, TRANSFORM_FILE} <= files.keys():
        raise ContractError(
            f"what version {contract.version} of {contract.name} was made by was not recorded",
            hint=f"keep it from where it still is: mesh keep {contract.name} --from <folder or revision>",
        )
    return files


def folder_files(folder: Path) -> dict[str, bytes]:
    """What lies in a product's folder beside its contract: definition, transform, suites."""
    files = dict(_other_files(folder))
    files.pop(CONTRACT_FILE, None)
    return files


def _other_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What else lies in the product's folder: definition, transform, suites."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part in _PASSED_OVER for part in relative.parts)
        if path.is_file() and not hidden:
            yield str(relative), path.read_bytes()


def _contract(contract: Contract, name: ProductName, until: date | None) -> str:
    content: dict[str, Any] = dict(contract.content)
    content |= {"id": f"{contract.id}_v{major(contract.version)}", "name": name.product}
    content["status"] = "deprecated"
    if "dataProduct" in content:
        content["dataProduct"] = name.product
    content["schema"] = [
        {key: value for key, value in table.items() if key != "physicalName"} for table in content["schema"]
    ]
    if "servers" in content:
        paths = {f"{contract.domain}/{contract.product}": f"{name.domain}/{name.product}"}
        content["servers"] = [
            server | {"path": paths.get(server["path"], server["path"])} if "path" in server else server
            for server in content["servers"]
        ]
    if until is not None:
        promises = [one for one in content.get("slaProperties", ()) if one["property"] != END_OF_SUPPORT]
        content["slaProperties"] = [*promises, {"property": END_OF_SUPPORT, "value": until.isoformat()}]
    return standard.to_yaml(content)


def _texts(contract: Contract, now: Contract | None) -> dict[str, list[str]]:
    """Table -> the columns whose values may be outside of their type, and are passed on as texts then.

    Only those that the new version has as they were; if that is to come, the team's transform decides.
    """
    there = {table.name: table for table in now.tables} if now is not None else {}
    return {
        table.name: [
            column.name
            for column in table.columns
            if column.name not in table.key
            and _may_be_inexact(column.physical_type)
            and _same_column(table, there[table.name], column.name)
            and column.name + EXACT_SUFFIX not in [one.name for one in there[table.name].columns]
        ]
        for table in contract.tables
        if table.name in there
    }


def _may_be_inexact(physical_type: str) -> bool:
    kind = PhysicalType.parse(physical_type)
    return kind.array or kind.name not in _ALWAYS_EXACT


def _definition(contract: Contract, now: Contract, texts: Mapping[str, Sequence[str]]) -> str:
    inputs: dict[str, dict[str, Any]] = {}
    there = {table.name: table for table in now.tables}
    gone = [table.name for table in contract.tables if table.name not in there]
    if gone:
        raise ContractError(
            f"version {contract.version} of {contract.name} promises {', '.join(gone)}, which version "
            f"{now.version} captures no more, so it cannot be made of that",
            hint="let the new version have the table as well until nobody reads the old one",
        )
    common = [
        column
        for column in _common_key(contract.tables)
        if all(_same_column(table, there[table.name], column) for table in contract.tables)
    ]
    for table in contract.tables:
        inputs[table.name] = {"product": str(contract.name), "table": table.name}
        if common:
            inputs[table.name]["key"] = {column: column for column in common}
        if exact := texts.get(table.name):
            inputs[table.name]["exact"] = list(exact)
    text = yaml.safe_dump({"attributes": {"inputs": inputs}}, sort_keys=False, allow_unicode=True)
    return f"type: {PRODUCT_TYPE}\n\n{text}"


def _same_column(old: TableContract, new: TableContract, name: str) -> bool:
    """Whether both versions of a table have the column, in the same type: then a key path leads over it."""
    held = {column.name: column for column in new.columns}.get(name)
    kinds = [PhysicalType.parse(one.physical_type) for one in (old.column(name), held) if one is not None]
    return len(kinds) == 2 and kinds[0].same(kinds[1])


def _common_key(tables: Sequence[TableContract]) -> list[str]:
    """The columns that every table's key has: by these the tables can be made in parts."""
    return [column for column in tables[0].key if all(column in table.key for table in tables)]


def _transform(contract: Contract, texts: Mapping[str, Sequence[str]]) -> str:
    number = major(contract.version)
    made = "".join(
        f'        "{table.name}": inputs["{table.name}"].select(\n'
        + "".join(f'            "{column.name}",\n' for column in table.columns)
        + "".join(f'            "{name}{EXACT_SUFFIX}",\n' for name in texts.get(table.name, ()))
        + "        ),\n"
        for table in contract.tables
    )
    return f'''"""{contract.name} as version {number} promised it, made of the version that there is now.

Columns that the new version calls otherwise are given their old names here, for example
``amount=pl.col("total")`` (import polars as pl).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def transform(inputs: Mapping[str, pl.LazyFrame]) -> dict[str, pl.LazyFrame]:
    """The tables of version {number}."""
    return {{
{made}    }}
'''

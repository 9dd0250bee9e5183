"""``mesh products`` and ``mesh show``: what there is, and what it promises.

A product is shown as its folder has it; one that has none here, as the enterprise catalog has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mesh_assets.catalog import local
from mesh_assets.catalog.local import CheckRecord, LocalRecord
from mesh_assets.checks.pages import page
from mesh_assets.cli import elsewhere
from mesh_assets.cli.terminal import age, cell, console, emit, moment, table
from mesh_assets.contract.discovery import Product
from mesh_assets.contract.model import ColumnContract, SlaProperty, TableContract
from mesh_assets.contract.support import Support, support
from mesh_assets.errors import UnknownName
from mesh_assets.lake.position import Lsn
from mesh_assets.lake.version import VersionRow
from mesh_assets.names import CHANGES, CURRENT
from mesh_assets.product import Mesh

if TYPE_CHECKING:
    from rich.text import Text


def listing(mesh: Mesh, *, as_json: bool) -> None:
    """Print all products."""
    standing = [(product, mesh.latest_version(product)) for product in mesh.discovery.products.values()]
    if as_json:
        emit(
            [
                {
                    "name": str(product.name),
                    "description": product.contract.description,
                    "owners": list(product.contract.owners),
                    "contract_version": product.contract.version,
                    "status": product.contract.status,
                    "tables": [table.name for table in product.contract.tables],
                    "version": version.version if version else None,
                    "newest_change_at": version.committed_at.isoformat() if version else None,
                    "keeps": _keeps(support(mesh.discovery, product)),
                }
                for product, version in standing
            ]
        )
        return
    made = table(
        *("product", "owner", "contract", "tables", "version", "newest change", "description"),
        right=("version",),
    )
    for product, version in standing:
        made.add_row(
            cell(product.name, "bold"),
            cell(product.contract.owners[0]),
            cell(product.contract.version),
            cell(", ".join(table.name for table in product.contract.tables)),
            cell(version.version if version else "-"),
            cell(f"{age(version.committed_at)} ago" if version else "-"),
            cell(product.contract.description),
        )
    out = console()
    out.print(made)
    for product, _ in standing:
        if kept := support(mesh.discovery, product):
            text = f"{product.name} keeps version {kept.version} of {kept.product}: {kept.fate}"
            out.print(cell(text, "yellow" if kept.may_go else ""), soft_wrap=True)
    for folder, error in mesh.discovery.broken:
        out.print(cell(f"{folder.name} is left out: {error}", "red"), soft_wrap=True)


def _keeps(kept: Support | None) -> dict[str, Any] | None:
    if kept is None:
        return None
    return {
        "product": str(kept.product),
        "version": kept.version,
        "readers": [str(name) for name in kept.readers],
        "until": kept.until and kept.until.isoformat(),
        "may_go": kept.may_go,
        "removed_by_mesh": kept.by_mesh,
        "folder": str(kept.folder),
    }


def show(mesh: Mesh, name: str, *, as_json: bool) -> None:
    """Print one product, or one table of it.

    Raises:
        UnknownName: if neither this checkout nor the catalog knows it; it lists what they know.
    """
    try:
        product, tables = _chosen(mesh, name)
    except UnknownName as unknown:
        found, rows = elsewhere.find(mesh, name, unknown)
        if as_json:
            emit(elsewhere.record(mesh, found, rows))
        else:
            elsewhere.show(mesh, found, rows, _checks(found.checks), _failing(found.checks))
        return
    version = mesh.latest_version(product)
    known = local.make(mesh.layout, mesh.discovery, product.name)
    others = elsewhere.consumers(mesh, product.name)
    known = known.model_copy(update={"consumers": sorted({*known.consumers, *others})})
    if as_json:
        emit(_record(mesh, product, tables, version, known))
        return
    contract, out, kept = product.contract, console(), support(mesh.discovery, product)
    out.print(cell(f"{product.name}  {contract.version}  {contract.status}", "bold"))
    out.print(cell(contract.description), soft_wrap=True)
    if contract.limitations:
        out.print(cell(contract.limitations, "dim"), soft_wrap=True)
    out.print()
    facts = [
        ("owners", ", ".join(contract.owners)),
        *([("keeps", f"version {kept.version} of {kept.product}, {kept.fate}")] if kept else []),
        _origin(known),
        ("read by", ", ".join(known.consumers) or "no product of this mesh"),
        ("promises", "; ".join(_promise(one) for one in contract.sla)),
        ("contract", f"{contract.path} ({contract.hash[:12]})"),
        ("releases", ", ".join(f"{one.version} since {one.released_at:%Y-%m-%d}" for one in known.releases)),
        ("version", _version(version, derived=product.derived)),
        ("checks", _checks(known.checks)),
        ("data docs", str(page(mesh.layout, product.name) or "not built yet")),
    ]
    for label, value in facts:
        out.print(cell(f"{label:<9} "), cell(value or "-"), sep="", soft_wrap=True)
    for line in _failing(known.checks):
        out.print(line, soft_wrap=True)
    for one in tables:
        out.print()
        origin = "" if product.derived else f"  from {one.physical_name}"
        out.print(cell(f"{product.name}.{one.name}", "bold"), cell(origin, "dim"), sep="")
        if one.description:
            out.print(cell(one.description), soft_wrap=True)
        out.print(_columns(one))
        generation = version.generation(one.name) if version else 1
        for kind in (CHANGES, CURRENT):
            uri = mesh.layout.table(product.name, kind, one.name, generation)
            out.print(cell(f"{kind:<8} {uri}", "dim"), soft_wrap=True)


def show_event_schema(mesh: Mesh, name: str) -> None:
    """Print the JSON Schema of a table's change events, or those of all of a product's by table.

    Raises:
        UnknownName: if there is no such product or table.
    """
    product, tables = _chosen(mesh, name)
    schemas = {one.name: product.contract.json_schema(one.name) for one in tables}
    emit(schemas if name.count(".") == 1 else schemas[tables[0].name])


def _chosen(mesh: Mesh, name: str) -> tuple[Product, tuple[TableContract, ...]]:
    """The product, and the table that was named or all of them."""
    if name.count(".") == 1:
        return (product := mesh.product(name)), product.contract.tables
    product, chosen = mesh.resolve(name)
    return product, (chosen,)


def _columns(chosen: TableContract) -> Any:  # noqa: ANN401 - a rich renderable
    made = table("column", "type", "", "classification", "meaning")
    for column in chosen.columns:
        made.add_row(
            cell(column.name, "bold" if column.key else ""),
            cell(column.physical_type or column.logical_type),
            cell(_marks(column)),
            cell(column.classification or ""),
            cell(column.description),
        )
    return made


def _marks(column: ColumnContract) -> str:
    if column.key:
        return "key"
    return "required" if column.required else ""


def _promise(one: SlaProperty) -> str:
    return " ".join(str(part) for part in (one.name, one.value, one.unit) if part != "")


def _version(row: VersionRow | None, *, derived: bool) -> str:
    if row is None:
        return f"none yet: nothing was {'derived' if derived else 'captured'}"
    position = f", up to LSN {Lsn(row.lsn)}" if row.lsn is not None and not derived else ""
    if derived:
        position = "".join(f", {name} at {number}" for name, number in sorted(row.parents.items()))
    return f"{row.version}, {moment(row.committed_at)}{position}, {row.hash[:12]}"


def _origin(known: LocalRecord) -> tuple[str, str]:
    if known.derived:
        return "made of", ", ".join(f"{one.name}.{one.table}" for one in known.inputs)
    return "source", ", ".join(dict.fromkeys(one.name for one in known.inputs))


def _checks(checks: Sequence[CheckRecord]) -> str:
    if not checks:
        return "none was evaluated yet"
    outcomes = Counter(one.outcome for one in checks)
    told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    return f"{told}, at version {max(one.version or 0 for one in checks)}"


def _failing(checks: Sequence[CheckRecord]) -> list[Text]:
    return [
        cell(f"          {check.rule}: {_outcome(check)}", "red" if check.blocking else "yellow")
        for check in checks
        if check.outcome != "passed"
    ]


def _outcome(check: CheckRecord) -> str:
    if check.message:
        return check.message
    if check.unexpected_count:
        return f"{check.unexpected_count:,} of {check.row_count or 0:,} rows break it"
    return f"{check.outcome}, found {check.observed}" if check.observed else check.outcome


def _record(
    mesh: Mesh,
    product: Product,
    tables: tuple[TableContract, ...],
    version: VersionRow | None,
    known: LocalRecord,
) -> dict[str, Any]:
    contract = product.contract
    standing = {one.name: one for one in known.tables}
    generation = {one.name: version.generation(one.name) if version else 1 for one in tables}
    return {
        "name": str(product.name),
        "known_from": "folder",
        "contract_version": contract.version,
        "status": contract.status,
        "description": contract.description,
        "usage": contract.usage,
        "limitations": contract.limitations,
        "owners": list(contract.owners),
        "source": None if product.derived else f"{product.name.domain}.{product.definition.source}",
        "derived": product.derived,
        "inputs": [one.model_dump(mode="json") for one in known.inputs],
        "consumers": list(known.consumers),
        "keeps": _keeps(support(mesh.discovery, product)),
        "releases": [one.model_dump(mode="json", exclude={"columns"}) for one in known.releases],
        "checks": [one.model_dump(mode="json") for one in known.checks],
        "data_docs": str(docs) if (docs := page(mesh.layout, product.name)) else None,
        "statistics": known.statistics,
        "contract_file": str(contract.path),
        "contract_hash": contract.hash,
        "promises": [
            {"name": one.name, "value": one.value, "unit": one.unit, "table": one.element}
            for one in contract.sla
        ],
        "version": {
            "number": version.version,
            "committed_at": version.committed_at.isoformat(),
            "created_at": version.created_at.isoformat(),
            "lsn": str(Lsn(version.lsn)) if version.lsn is not None and not product.derived else None,
            "parents": dict(version.parents),
            "hash": version.hash,
            "previous_hash": version.previous_hash,
            "run_id": version.run_id,
            "actor": version.actor,
            "last_seq": dict(version.tables),
        }
        if version
        else None,
        "tables": [
            {
                "name": one.name,
                "source_table": one.physical_name,
                "description": one.description,
                "key": list(one.key),
                "changes_uri": mesh.layout.table(product.name, CHANGES, one.name, generation[one.name]),
                "current_uri": mesh.layout.table(product.name, CURRENT, one.name, generation[one.name]),
                "generation": generation[one.name],
                "changes": standing[one.name].change_count,
                "changes_delta_version": standing[one.name].changes_delta_version,
                "current_delta_version": standing[one.name].current_delta_version,
                "folded_rows": standing[one.name].folded_row_count,
                "schemas": [schema.model_dump(mode="json") for schema in standing[one.name].schemas],
                "columns": [
                    {
                        "name": column.name,
                        "type": column.physical_type or column.logical_type,
                        "logical_type": column.logical_type,
                        "key": column.key,
                        "required": column.required,
                        "classification": column.classification,
                        "description": column.description,
                    }
                    for column in one.columns
                ],
            }
            for one in tables
        ],
    }

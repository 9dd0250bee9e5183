"""Products whose folders are not in this checkout, such as other teams': what the catalog knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mesh_assets.catalog import enterprise
from mesh_assets.catalog.entry import Entry, Row
from mesh_assets.catalog.graph import Graph
from mesh_assets.cli.folded import STORAGE_ERRORS, folded
from mesh_assets.cli.terminal import cell, console, moment, note, table
from mesh_assets.errors import UnknownName
from mesh_assets.names import CHANGES, CURRENT, ProductName
from mesh_assets.product import Mesh

if TYPE_CHECKING:
    from rich.text import Text


def elsewhere(mesh: Mesh) -> list[str]:
    """The products that have published a record in the lake and have no folder here."""
    return [str(name) for name in enterprise.products(mesh.layout) if name not in mesh.discovery.products]


def consumers(mesh: Mesh, name: ProductName) -> list[str]:
    """The products elsewhere that read a product; none, and a note, if the catalog cannot be read."""
    try:
        others = elsewhere(mesh)
        # Without any there is nothing that only the catalog knows, and nothing to fold.
        known = Graph.load(folded(mesh)).consumers(str(name)) if others else ()
    except STORAGE_ERRORS as error:
        note(f"whether products elsewhere read it is not known: {error}", "yellow")
        return []
    return [one for one in known if one in others]


def find(mesh: Mesh, name: str, unknown: UnknownName) -> tuple[Entry, tuple[Row, ...]]:
    """What the catalog knows of a product, and the tables of it that are named.

    Args:
        mesh: this checkout.
        name: ``domain.product[.table]``.
        unknown: what is wrong with it here.

    Raises:
        UnknownName: if the catalog does not know it either; it lists what there is here and elsewhere.
    """
    others = elsewhere(mesh)
    product, chosen = ".".join(name.split(".")[:2]), ".".join(name.split(".")[2:])
    if product not in others:
        if not unknown.available or any(product == str(one) for one in mesh.discovery.products):
            raise unknown
        known = [*unknown.available, *others]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else unknown.hint
        raise UnknownName(unknown.message, available=known, hint=hint)
    found = Entry.load(folded(mesh), product)
    if found is None:
        raise UnknownName(
            f"{product} has no folder here, and the catalog does not have it",
            hint="its record in the lake cannot be read: the product's next shift writes it again",
        )
    tables = tuple(row for row in found.tables if chosen in ("", row["table"]))
    if not tables:
        raise UnknownName.of(f"table in {product}", chosen, [row["table"] for row in found.tables])
    return found, tables


def show(mesh: Mesh, found: Entry, tables: Sequence[Row], checks: str, failing: Sequence[Text]) -> None:
    """Print a product, or one table of it.

    Args:
        mesh: this checkout.
        found: the product.
        tables: which of its tables.
        checks: how they came out, in few words.
        failing: a line for each that did not pass.
    """
    first, out = found.tables[0], console()
    out.print(cell(f"{found.product}  {first['contract_version']}  {first['status']}", "bold"))
    out.print(cell(first["product_description"]), soft_wrap=True)
    if first["limitations"]:
        out.print(cell(first["limitations"], "dim"), soft_wrap=True)
    out.print(
        cell(
            f"from the enterprise catalog: no folder of this checkout defines it; "
            f"published {moment(first['published_at'])}",
            "dim",
        ),
        soft_wrap=True,
    )
    out.print()
    for label, value in (
        ("owners", ", ".join(first["owners"])),
        ("made of" if first["derived"] else "source", ", ".join(found.made_of)),
        ("read by", ", ".join(found.consumers) or "no product of this mesh"),
        ("promises", "; ".join(dict.fromkeys(one for row in tables for one in row["promises"]))),
        ("contract", f"{first['contract_file']} ({first['contract_hash'][:12]})"),
        ("version", _version(found.versions[0]) if found.versions else "none yet"),
        ("checks", checks),
    ):
        out.print(cell(f"{label:<9} "), cell(value or "-"), sep="", soft_wrap=True)
    for line in failing:
        out.print(line, soft_wrap=True)
    if len(found.versions) > 1:
        out.print()
        made = table("version", "committed", "changes", "run", "by", right=("version", "changes"))
        for row in found.versions:
            made.add_row(
                cell(row["version"]),
                cell(moment(row["committed_at"])),
                cell(f"{row['change_count']:,}"),
                cell(row["run_id"]),
                cell(row["actor"]),
            )
        out.print(made)
    for row in tables:
        out.print()
        origin = f"  from {row['source_table']}" if row["source_table"] else ""
        out.print(cell(row["dataset"], "bold"), cell(origin, "dim"), sep="")
        if row["description"]:
            out.print(cell(row["description"]), soft_wrap=True)
        made = table("column", "type", "", "classification", "meaning")
        for column in found.columns[row["table"]]:
            made.add_row(
                cell(column["column"], "bold" if column["key"] else ""),
                cell(column["physical_type"] or column["logical_type"]),
                cell("key" if column["key"] else "required" if column["required"] else ""),
                cell(column["classification"] or ""),
                cell(column["description"]),
            )
        out.print(made)
        for kind in (CHANGES, CURRENT):
            out.print(cell(f"{kind:<8} {_uri(mesh, found, row, kind)}", "dim"), soft_wrap=True)


def record(mesh: Mesh, found: Entry, tables: Sequence[Row]) -> dict[str, Any]:
    """The same as JSON, under the names of :func:`mesh_assets.cli.product.show` as far as it is known."""
    first = found.tables[0]
    versions = [
        {
            "number": row["version"],
            "committed_at": row["committed_at"],
            "created_at": row["created_at"],
            "changes": row["change_count"],
            "parents": row["parents"],
            "hash": row["hash"],
            "previous_hash": row["previous_hash"],
            "run_id": row["run_id"],
            "actor": row["actor"],
            "last_seq": row["tables"],
        }
        for row in found.versions
    ]
    return {
        "name": found.product,
        "known_from": "catalog",
        "published_at": first["published_at"],
        "contract_version": first["contract_version"],
        "status": first["status"],
        "description": first["product_description"],
        "usage": first["usage"],
        "limitations": first["limitations"],
        "owners": first["owners"],
        "derived": first["derived"],
        "made_of": found.made_of,
        "consumers": found.consumers,
        "checks": [one.model_dump(mode="json") for one in found.checks],
        "contract_file": first["contract_file"],
        "contract_hash": first["contract_hash"],
        "promises": list(dict.fromkeys(one for row in tables for one in row["promises"])),
        "version": versions[0] if versions else None,
        "versions": versions,
        "tables": [
            {
                "name": row["table"],
                "source_table": row["source_table"] or None,
                "description": row["description"],
                "key": row["key"],
                "changes_uri": _uri(mesh, found, row, CHANGES),
                "current_uri": _uri(mesh, found, row, CURRENT),
                "changes": row["change_count"],
                "folded_rows": row["folded_row_count"],
                "columns": [
                    {
                        "name": column["column"],
                        "type": column["physical_type"] or column["logical_type"],
                        "logical_type": column["logical_type"],
                        "key": column["key"],
                        "required": column["required"],
                        "classification": column["classification"],
                        "description": column["description"],
                    }
                    for column in found.columns[row["table"]]
                ],
            }
            for row in tables
        ],
    }


def _version(row: Row) -> str:
    made = "".join(f", {name} at {number}" for name, number in sorted((row["parents"] or {}).items()))
    return f"{row['version']}, {moment(row['committed_at'])}{made}, {row['hash'][:12]}"


def _uri(mesh: Mesh, found: Entry, row: Row, kind: str) -> str:
    generations = (found.versions[0]["generations"] if found.versions else None) or {}
    name = ProductName.parse(found.product)
    return mesh.layout.table(name, kind, row["table"], generations.get(row["table"], 1))

"""``mesh check``: a product's quality rules on its newest version, now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mesh_assets.checks import pages as data_docs
from mesh_assets.checks.evaluation import check_product
from mesh_assets.checks.log import Checked
from mesh_assets.cli.terminal import cell, console, emit, finite, show_error, table
from mesh_assets.errors import MeshError, SettingError
from mesh_assets.names import local_folder
from mesh_assets.product import Mesh

_STYLES = {"passed": "green", "warning": "yellow", "failed": "red", "error": "red", "skipped": "dim"}
_BAD = ("failed", "error")


def run(mesh: Mesh, names: Sequence[str], *, docs: bool, as_json: bool) -> int:
    """Evaluate the rules of products and keep the outcomes.

    Returns 1 if a rule of severity error fails, or a product could not be checked.

    Raises:
        SettingError: if pages are wanted and the lake is no local folder.
    """
    if docs and local_folder(mesh.layout.root) is None:
        raise SettingError(
            f"Data Docs are pages on a local disk, and the lake is {mesh.layout.root}",
            hint="set MESH_LAKE to a local folder, or leave --docs out",
        )
    products = list({product.name: product for product, _ in mesh.select(names)}.values())
    found: dict[str, list[Checked]] = {}
    pages: dict[str, Path] = {}
    errors: dict[str, MeshError] = {}
    progress = console(errors=True)
    for product in products:
        name = str(product.name)
        try:
            with progress.status(f"checking {name}"):
                # The version that is there now; without one this says what to do.
                found[name] = check_product(mesh.layout, product, mesh.cut(product.name).version)
        except MeshError as error:
            # The others are checked all the same.
            errors[name] = error
    checked = [product for product in products if found.get(str(product.name))]
    if docs:
        with progress.status("building Data Docs"):
            unbuilt = data_docs.build(mesh.layout, checked)
        for owner, wrong in unbuilt.items():
            errors[str(owner)] = MeshError(f"{owner}: Data Docs could not be built: {wrong}")
    for product in checked:
        if (page := data_docs.page(mesh.layout, product.name)) is not None:
            pages[str(product.name)] = page
    if as_json:
        told = [_record(name, rows, pages.get(name)) for name, rows in found.items()]
        emit([*told, *({"product": name, "error": str(one)} for name, one in errors.items())])
    else:
        for name, rows in found.items():
            _show(name, rows, pages.get(name), new=docs and name not in errors)
        for one in errors.values():
            show_error(one)
    failing = [row for rows in found.values() for row in rows if row.status in _BAD]
    return 1 if errors or any(row.severity == "error" for row in failing) else 0


def _show(name: str, rows: Sequence[Checked], page: Path | None, *, new: bool) -> None:
    if not rows:
        console().print(f"{name} has no quality rules")
        return
    made = table("rule", "outcome", "severity", "about", title=f"{name} version {rows[0].version}")
    for row in rows:
        outcome = cell(row.status, _STYLES.get(row.status, ""))
        severity = f"{row.severity}, blocking" if row.blocking else row.severity
        about = row.sentence().partition(": ")[2]
        made.add_row(cell(row.rule), outcome, cell(severity), cell(about if not row.passed else ""))
    console().print(made)
    if page is not None:
        console().print(f"Data Docs{'' if new else ' of an earlier time'}: {page}", soft_wrap=True)


def _record(name: str, rows: Sequence[Checked], page: Path | None) -> dict[str, Any]:
    return {
        "product": name,
        "version": rows[0].version if rows else None,
        "checks": [finite(asdict(row) | {"result": json.loads(row.result)}) for row in rows],
        "data_docs": str(page) if page else None,
    }

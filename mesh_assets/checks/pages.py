"""Data Docs in operation: the pages of products, made of the outcomes that checks keep.

Importing this loads nothing heavy: a code server asks here whether pages are behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh_assets.contract.discovery import Product
from mesh_assets.names import Layout, ProductName, local_folder

if TYPE_CHECKING:
    from mesh_assets.checks.log import Checked

_FOLDER = "data_docs"
_INDEX = "index.html"
_NOTE = "built.json"
"""Beside the pages: what they were made of."""


def page(layout: Layout, name: ProductName) -> Path | None:
    """The first page of a product; None if there is none (yet), or the lake is in an object store."""
    folder = _folder(layout, name)
    return folder / _INDEX if folder is not None and (folder / _INDEX).exists() else None


def behind(layout: Layout, product: Product, evaluation: int) -> bool:
    """Whether a product's pages are to be built.

    Args:
        layout: of the lake.
        product: whose contract says what pages may tell.
        evaluation: number of the newest evaluation of its rules; 0 if there was none.
    """
    folder = _folder(layout, product.name)
    if folder is None or not evaluation:
        return False
    try:
        built = json.loads((folder / _NOTE).read_text())
    except (OSError, ValueError):
        return True
    return {**built, "error": None} != _note(product, evaluation)


def build(layout: Layout, products: Iterable[Product]) -> dict[ProductName, str]:
    """Build the pages of products whose rules were evaluated, from the newest outcomes as they are kept.

    Values of columns that are restricted now are left out, also where they were not restricted then.

    Returns:
        By product what went wrong, if anything did; its pages stay as they were.
    """
    from mesh_assets.checks.log import FAULTS, CheckLog
    from mesh_assets.quality import docs

    sites: list[docs.Site] = []
    notes: dict[ProductName, dict[str, Any]] = {}
    failed: dict[ProductName, str] = {}
    for product in products:
        if (folder := _folder(layout, product.name)) is None:
            continue
        try:
            rows = CheckLog(layout, product.name).latest()
        except FAULTS as error:
            # The others are built all the same.
            failed[product.name] = str(error)
            continue
        if not rows:
            continue
        validations: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            validations.setdefault(row.table, []).append(_validation(row.concealed(product.contract)))
        notes[product.name] = _note(product, rows[0].evaluation)
        note = _NOTE, json.dumps(notes[product.name])
        sites.append(docs.Site(product.name, folder, validations, rows[0].at, note))
    unbuilt = docs.build(sites)
    for site in sites:
        if site.product in unbuilt:
            # Not tried again before there is something new.
            site.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(notes[site.product] | {"error": unbuilt[site.product]})
            (site.folder / _NOTE).write_text(text)
    return failed | unbuilt


def _validation(row: Checked) -> dict[str, Any]:
    """A kept result as a page shows it: a rule that is met by current alone is not met."""
    told: dict[str, Any] = json.loads(row.result)
    if not row.quarantined_count:
        return told
    configuration = told["expectation_config"]
    said = ". ".join(part.rstrip(".") for part in (row.description, row.sentence()) if part)
    return {**told, "success": False, "expectation_config": {**configuration, "description": said}}


def _folder(layout: Layout, name: ProductName) -> Path | None:
    return local_folder(layout.catalog(name, _FOLDER))


def _note(product: Product, evaluation: int) -> dict[str, Any]:
    return {"evaluation": evaluation, "contract_hash": product.contract.hash, "error": None}

"""The newest version of a product, found without the Delta Lake library, which a code server never loads.

A version's number is an app transaction of the commit that holds it (:mod:`mesh_assets.lake.version`).
In a local lake the newest commit file says it. Anywhere else Dagster's own record of the product does,
which a shift brings up to date about every ten seconds and at its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import dagster as dg

from mesh_assets.contract.discovery import Product
from mesh_assets.names import CURRENT, Layout, ProductName, local_folder
from mesh_assets.orchestration.asset import VERSION, asset_key

_LOG = "_delta_log"
_COMMIT_DIGITS = 20
_ACTION = "txn"
_APP_ID = "version"


def newest_versions(
    layout: Layout, products: Iterable[Product], instance: dg.DagsterInstance
) -> dict[ProductName, int]:
    """The newest version of each product; 0 before its first."""
    return {product.name: _newest(layout, product, instance) for product in products}


def _newest(layout: Layout, product: Product, instance: dg.DagsterInstance) -> int:
    folder = local_folder(layout.versions(product.name))
    if folder is not None:
        return local_version(folder)
    table = product.contract.tables[0].name
    event = instance.get_latest_materialization_event(asset_key(product.name, CURRENT, table))
    last = event.asset_materialization if event else None
    value = last.metadata[VERSION].value if last is not None and VERSION in last.metadata else None
    return value if isinstance(value, int) else 0


def local_version(folder: Path, app_id: str = _APP_ID) -> int:
    """The newest version in a version log's folder; 0 if there is none.

    Args:
        folder: of a table whose rows are numbered by an app transaction.
        app_id: its name.
    """
    try:
        with os.scandir(folder / _LOG) as entries:
            commits = sorted(
                (entry.name for entry in entries if _is_commit(entry.name)),
                reverse=True,
            )
    except FileNotFoundError:
        return 0
    # The newest commit holds a version, but for one that added a column or an archive's checkpoint.
    for name in commits:
        try:
            found = _version_in((folder / _LOG / name).read_bytes(), app_id)
        except FileNotFoundError:
            # Archived meanwhile: it is older than one that holds a version.
            continue
        if found is not None:
            return found
    return 0


def _is_commit(name: str) -> bool:
    return name.endswith(".json") and name[:_COMMIT_DIGITS].isdecimal() and len(name) == _COMMIT_DIGITS + 5


def _version_in(commit: bytes, app_id: str) -> int | None:
    for line in commit.splitlines():
        if f'"{_ACTION}"'.encode() not in line:
            continue
        action: Mapping[str, object] = json.loads(line)
        transaction = action.get(_ACTION)
        if isinstance(transaction, dict) and transaction.get("appId") == app_id:
            return int(transaction["version"])
    return None

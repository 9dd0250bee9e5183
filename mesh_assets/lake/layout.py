"""The format number of everything below one lake root.

``layout.json`` at the root says which format the folders, tables and columns follow. A program that
knows a newer format upgrades step by step; one that knows only older formats refuses, because it
would read the lake wrongly without noticing.
"""

from __future__ import annotations

import json

from mesh_assets.errors import LakeError, LayoutUnknown
from mesh_assets.lake.storage import storage_of

FORMAT = 1
_FILE = "layout.json"


def ensure_layout(root: str) -> int:
    """Make sure that this program understands the lake at ``root``; returns the format it has.

    A root without the file is new and gets it, durably.

    Raises:
        LayoutUnknown: if the lake was written in a newer format.
        LakeError: if the file cannot be understood at all.
    """
    storage = storage_of(root)
    try:
        text = storage.read(_FILE)
    except FileNotFoundError:
        storage.write(_FILE, (json.dumps({"format": FORMAT}) + "\n").encode())
        return FORMAT
    try:
        found = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, int):
        raise LakeError(
            f"{storage.address(_FILE)} is damaged",
            hint=f'write {{"format": {FORMAT}}} if the lake is of today',
        )
    if found > FORMAT:
        raise LayoutUnknown(
            f"the lake at {storage.uri} has format {found}; this program knows formats up to {FORMAT}",
            hint="update the program: a newer one wrote here",
        )
    return found

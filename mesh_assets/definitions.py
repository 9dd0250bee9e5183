"""The whole mesh in one object: for ``dg``, for ``dagster dev -m mesh_assets.definitions``, for tests.

In operation every domain is a code location of its own, see :mod:`mesh_assets.code_locations`. There a
mistake leaves the other domains running; here it fails the load, since a check has to fail.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from mesh_assets.orchestration.enterprise import enterprise_definitions


@dg.definitions
def defs() -> dg.Definitions:
    """All domains below ``products/`` and the enterprise."""
    products = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(products, enterprise_definitions())

"""The whole mesh in one object: for ``dg``, for ``dagster dev -m mesh_assets.definitions``, for tests.

In operation every domain is a code location of its own, see :mod:`mesh_assets.code_locations`.
"""

from __future__ import annotations

import dagster as dg

from mesh_assets import code_locations
from mesh_assets.orchestration.enterprise import DOMAIN


@dg.definitions
def defs() -> dg.Definitions:
    """All domains and the enterprise.

    Raises:
        ContractError: naming file and line, if a domain's own definition is wrong.
    """
    names = [*code_locations.domains(), DOMAIN]
    return dg.Definitions.merge(*(getattr(code_locations, name) for name in names))

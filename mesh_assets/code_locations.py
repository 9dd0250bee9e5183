"""One code location per domain, and ``enterprise``: attributes made when they are asked for.

``workspace.yaml`` names ``mesh_assets.code_locations`` with a domain as the attribute, so each domain
is loaded in a process of its own and a mistake in one leaves the others running. A new domain is a
folder below ``products/`` and a stanza there; nothing changes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg


def __getattr__(name: str) -> dg.Definitions:
    """The definitions of a domain or of the enterprise.

    Raises:
        AttributeError: if there is no such domain.
        ContractError: naming file and line, if the domain's own definition is wrong.
    """
    if name.startswith("_"):
        raise AttributeError(name)
    from mesh_assets.orchestration.location import location

    return location(name)

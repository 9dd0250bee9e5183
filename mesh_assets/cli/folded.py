"""Makes sure that the enterprise catalog is there, and as new as what products have published."""

from __future__ import annotations

from datetime import UTC, datetime

from deltalake.exceptions import DeltaError

from mesh_assets.catalog import enterprise, local
from mesh_assets.cli.terminal import note
from mesh_assets.errors import AsOfRefused, MeshError
from mesh_assets.lake.version import parse_as_of
from mesh_assets.names import Layout
from mesh_assets.product import Mesh

STORAGE_ERRORS = (MeshError, DeltaError, OSError)


def folded(mesh: Mesh) -> Layout:
    """Bring the catalog up to date if that is possible; else what is there is read, and a note says so.

    Raises:
        MeshError, DeltaError, OSError: if there is no catalog and none can be made.
    """
    try:
        _publish_missing(mesh)
        for problem in enterprise.fold(mesh.layout).problems:
            note(f"not in the catalog: {problem}", "yellow")
    except STORAGE_ERRORS as error:
        if not enterprise.exists(mesh.layout):
            raise
        note(f"the catalog is shown as it was folded last: {error}", "yellow")
    return mesh.layout


def moment_of(text: str | None) -> datetime | None:
    """A moment in ISO 8601, in UTC without a zone.

    Raises:
        AsOfRefused: if the text is none.
    """
    if text is None:
        return None
    found = parse_as_of(text)
    if isinstance(found, datetime):
        return found.astimezone(UTC)
    raise AsOfRefused(
        f"{text!r} is no moment, and lineage goes over several products",
        hint="write a moment such as 2026-03-01T12:00:00+01:00",
    )


def _publish_missing(mesh: Mesh) -> None:
    """Products that no shift has captured yet have no record: their contracts are shown all the same."""
    present = set(enterprise.products(mesh.layout))
    for name in mesh.discovery.products.keys() - present:
        local.publish(mesh.layout, mesh.discovery, name)

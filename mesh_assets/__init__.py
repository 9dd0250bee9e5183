"""An open data mesh: change data capture into Delta data products, exactly once.

Importing this package is light: neither Dagster nor Great Expectations is loaded.
Analysts use :func:`open`; everything else lives in the submodules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh_assets.shift.memory import choose_allocators

if TYPE_CHECKING:
    from mesh_assets.product import open

__all__ = ["open"]

# Native libraries look at their settings when they are loaded.
choose_allocators()


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 requires it
    if name == "open":
        from mesh_assets.product import open

        return open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

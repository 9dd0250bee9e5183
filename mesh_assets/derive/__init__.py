"""Derived products: made of other products by a pure function, kept up change by change, exactly once.

A derived product's source is other products. Each of its versions is what its transform makes of one
version of each of them (its parents); what differs from the version before is appended to its own log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh_assets.derive.plan import DerivePlan, Subscription, derive_plan, derive_plans

if TYPE_CHECKING:
    from mesh_assets.derive.shift import DeriveShift

__all__ = ["DerivePlan", "DeriveShift", "Subscription", "derive_plan", "derive_plans"]


def __getattr__(name: str) -> object:
    # A plan is asked for by everyone; what runs it is large.
    if name == "DeriveShift":
        from mesh_assets.derive.shift import DeriveShift

        return DeriveShift
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

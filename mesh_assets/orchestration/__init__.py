"""Dagster's view of the mesh: components, assets, sensors, checks. The only package that imports Dagster.

``Domain`` and ``DataProduct`` are the component types of ``products/**/defs.yaml``.
"""

from __future__ import annotations

import warnings

from dagster import BetaWarning, PreviewWarning

# The one place that silences warnings of Dagster's: where Dagster itself calls what it marks as beta
# or preview, and the references to a file and line that every component and asset here carries.
for category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=category, module=r"dagster\b")
warnings.filterwarnings("ignore", r"\w+ `(LocalFileCodeReference|CodeReferencesMetadataValue)`", BetaWarning)

from mesh_assets.orchestration.component import DataProduct, Domain  # noqa: E402 - after the filters

__all__ = ["DataProduct", "Domain"]

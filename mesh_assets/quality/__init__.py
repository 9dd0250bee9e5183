"""Quality: rules of contracts and suites, compiled to columnar expressions, gated and evaluated.

Great Expectations is the standard in and out (suites, result objects, Data Docs); it is imported only
in child processes, by :mod:`mesh_assets.quality.slow` and :mod:`mesh_assets.quality.docs`.
"""

from __future__ import annotations

from mesh_assets.quality.evaluate import evaluate
from mesh_assets.quality.gate import Gate, Marks, Previous
from mesh_assets.quality.result import Outcome, suite_result
from mesh_assets.quality.rule import Origin, Rule, Ruleset, Scope, Severity, Status
from mesh_assets.quality.ruleset import load

__all__ = [
    "Gate",
    "Marks",
    "Origin",
    "Outcome",
    "Previous",
    "Rule",
    "Ruleset",
    "Scope",
    "Severity",
    "Status",
    "evaluate",
    "load",
    "suite_result",
]

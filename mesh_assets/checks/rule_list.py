"""Prints the quality rules of all products as JSON, for programs that must not load polars themselves.

Whether a rule blocks and what decides it is known once it is compiled, which takes polars; Dagster's
code servers, which show every rule as a check, are kept without it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh_assets.contract.discovery import discover
from mesh_assets.errors import ContractError
from mesh_assets.quality.ruleset import load


def rule_list(products: Path) -> dict[str, dict[str, Any]]:
    """By product: its ``rules``, or the ``error`` that keeps them from being loaded."""
    found: dict[str, dict[str, Any]] = {}
    for name, product in discover(products).products.items():
        try:
            rules = load(product).rules
        except ContractError as error:
            found[str(name)] = {"error": str(error)}
            continue
        found[str(name)] = {
            "rules": [
                {
                    "id": rule.id,
                    "table": rule.table,
                    "columns": list(rule.columns),
                    "scope": rule.scope.value,
                    "severity": rule.severity.value,
                    "blocking": rule.blocking,
                    "dimension": rule.dimension,
                    "description": rule.description,
                    "path": str(rule.path.absolute()),
                    "line": rule.line,
                }
                for rule in rules
            ]
        }
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the list of the products folder that is named."""
    json.dump(rule_list(Path(arguments[0])), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

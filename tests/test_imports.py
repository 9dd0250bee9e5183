"""What importing the package must not drag in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mesh_assets

PACKAGE = Path(mesh_assets.__file__).parent
# Everything else is the core. The supervisor's modules below local start Dagster, hence may name it.
MAY_IMPORT_DAGSTER = ("cli.py", "definitions.py", "code_locations.py", "orchestration/", "local/")
HEAVY = ("dagster", "dagster_postgres", "dagster_webserver", "great_expectations", "products")
PROGRAM = """
import importlib, json, sys
from warnings import simplefilter
simplefilter("error")
loaded = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    for heavy in json.loads(sys.argv[2]):
        if heavy in sys.modules:
            loaded.setdefault(heavy, name)
sys.stdout.write(json.dumps(loaded))
sys.stdout.flush()
import os
os._exit(0)
"""


def core_modules() -> list[str]:
    """Every module of the package outside of the parts that may know Dagster."""
    found = ["mesh_assets"]
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(PACKAGE)
        if str(relative).startswith(MAY_IMPORT_DAGSTER):
            continue
        parts = relative.with_suffix("").parts
        found.append(".".join(["mesh_assets", *(parts[:-1] if parts[-1] == "__init__" else parts)]))
    return found


def loaded_by(modules: list[str], heavy: tuple[str, ...]) -> dict[str, str]:
    """Which of ``heavy`` a fresh process has loaded after importing ``modules``, and by which of these."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(modules), json.dumps(heavy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_the_core_loads_neither_dagster_nor_great_expectations_nor_products() -> None:
    modules = core_modules()
    assert {"mesh_assets", "mesh_assets.cdc", "mesh_assets.lake", "mesh_assets.errors"} <= set(modules)
    assert loaded_by(modules, HEAVY) == {}


def test_the_package_itself_is_light() -> None:
    assert loaded_by(["mesh_assets"], ("numba", "polars", "pyarrow", "deltalake", "duckdb", "psycopg")) == {}


def test_an_application_of_the_organisation_is_light() -> None:
    heavy = (*HEAVY, "numba", "polars", "pyarrow", "deltalake", "pydantic")
    assert loaded_by(["mesh_assets.local.organisation.sales"], heavy) == {}

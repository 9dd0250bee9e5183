"""Great Expectations' Data Docs of a product: its rules and their latest results as static pages.

Built in a child process, because only there Great Expectations is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mesh_assets.names import ProductName
from mesh_assets.quality.result import SKIPPED, suite_validation
from mesh_assets.quality.slow import run_child

MAX_SECONDS = 300.0
FOREIGN_PREFIX = "odcs_"
INDEX = "index.html"


def build(
    product: ProductName,
    validations: Mapping[str, Sequence[Mapping[str, Any]]],
    folder: Path,
    *,
    at: datetime | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Path:
    """Build the pages of one product, replacing those that are there; returns the first page.

    Args:
        product: the product.
        validations: for each of its tables the results of its rules, as outcomes hold them and checks keep
            them; skipped ones are left out.
        folder: where the pages go.
        at: when the rules were evaluated; now, if left out.

    Raises:
        mesh_assets.quality.slow.ChildFailed: if Great Expectations fails; the pages that were there stay.
    """
    suites = [
        {
            "name": f"{product}.{table}",
            "expectations": [found["expectation_config"] for found in told],
            "result": suite_validation(f"{product}.{table}", told),
        }
        for table, found_all in validations.items()
        if (told := [found for found in found_all if SKIPPED not in found["meta"]])
    ]
    when = at or datetime.now(UTC)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".docs-", dir=folder.parent) as fresh:
        asked = {"product": str(product), "suites": suites, "folder": fresh, "at": when.isoformat()}
        run_child("mesh_assets.quality.docs", asked, max_seconds=max_seconds)
        old = Path(fresh) / ".old"
        if folder.exists():
            folder.rename(old)
        site = Path(fresh) / "site"
        site.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return folder / INDEX


# -- the child ----------------------------------------------------------------------------------------


def _build_here(asked: Mapping[str, Any]) -> None:
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    _register_foreign(asked["suites"])
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for name in list(context.variables.data_docs_sites or {}):
        context.delete_data_docs_site(name)
    context.add_data_docs_site(
        asked["product"],
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(Path(asked["folder"]) / "site"),
            },
        },
    )
    run = RunIdentifier(run_name=asked["product"], run_time=asked["at"])
    for suite in asked["suites"]:
        results = []
        for written in suite["result"]["results"]:
            config = ExpectationConfiguration(**_described(written["expectation_config"]))
            rest = {name: written[name] for name in ("success", "result", "meta", "exception_info")}
            results.append(ExpectationValidationResult(expectation_config=config, **rest))
        whole = suite["result"]
        validation = ExpectationSuiteValidationResult(
            success=whole["success"],
            results=results,
            suite_name=suite["name"],
            statistics=whole["statistics"],
            meta={"run_id": run.to_json_dict(), "great_expectations_version": gx.__version__},
        )
        key = ValidationResultIdentifier(
            expectation_suite_identifier=ExpectationSuiteIdentifier(name=suite["name"]),
            run_id=run,
            batch_identifier=suite["name"],
        )
        context.validation_results_store.set(key, validation)
        expectations = [ExpectationConfiguration(**_described(one)) for one in suite["expectations"]]
        context.suites.add(
            gx.ExpectationSuite(
                name=suite["name"], expectations=[one.to_domain_obj() for one in expectations]
            )
        )
    context.build_data_docs()
    # A page that cannot be rendered is only logged.
    pages = len(list((Path(asked["folder"]) / "site" / "validations").rglob("*.html")))
    if pages != len(asked["suites"]):
        raise SystemExit(f"{pages} of {len(asked['suites'])} pages could be rendered")


def _described(written: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with a sentence for rules that Great Expectations has no words for."""
    if not written["type"].startswith(FOREIGN_PREFIX) or written.get("description"):
        return dict(written)
    given = {name: value for name, value in written["kwargs"].items() if value not in (None, [], {})}
    said = ", ".join(f"{name}: {json.dumps(value)}" for name, value in given.items())
    return {**written, "description": f"{written['type'].removeprefix(FOREIGN_PREFIX)} ({said})"}


def _register_foreign(suites: Sequence[Mapping[str, Any]]) -> None:
    """Make types of expectations of what only contracts know, so that the pages can show them."""
    from great_expectations.expectations.expectation import BatchExpectation

    configurations = [one for suite in suites for one in suite["expectations"]]
    fields: dict[str, set[str]] = {}
    for written in configurations:
        if written["type"].startswith(FOREIGN_PREFIX):
            fields.setdefault(written["type"], set()).update(written["kwargs"])
    for name, names in fields.items():
        camel = "".join(part.capitalize() for part in name.split("_"))
        # Great Expectations registers a class by the snake case of its name.
        type(
            camel,
            (BatchExpectation,),
            {
                "__module__": __name__,
                "__annotations__": dict.fromkeys(names, Any),
                **dict.fromkeys(names),
                "metric_dependencies": (),
                "success_keys": tuple(names),
                "domain_keys": ("batch_id",),
                "_validate": lambda self, *_, **__: {"success": False},
            },
        )


def main() -> None:
    """Answer what the parent asks on standard input."""
    asked = json.load(sys.stdin)
    _build_here(asked)
    Path(sys.argv[1]).write_text(json.dumps({"built": True}), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Great Expectations' Data Docs: products' rules and their latest results as static pages.

Built in a child process, because only there Great Expectations is imported: one for all products asked for.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mesh_assets.lake.scratch import Scratch
from mesh_assets.names import ProductName
from mesh_assets.quality import child
from mesh_assets.quality.appearance import stand_alone
from mesh_assets.quality.result import SKIPPED, suite_validation

MAX_SECONDS = 120.0
FOREIGN_PREFIX = "odcs_"
INDEX = "index.html"


@dataclass(frozen=True)
class Site:
    """The pages of one product.

    Attributes:
        product: the product.
        folder: where the pages go, in place of those that are there.
        validations: for each of its tables the results of its rules, as outcomes hold them and checks keep
            them; skipped ones are left out.
        at: when the rules were evaluated.
        note: a file to put beside the pages, its name and content.
    """

    product: ProductName
    folder: Path
    validations: Mapping[str, Sequence[Mapping[str, Any]]]
    at: datetime
    note: tuple[str, str] | None = None


def build(sites: Sequence[Site], *, max_seconds: float = MAX_SECONDS) -> dict[ProductName, str]:
    """Build the pages of products, one after another.

    Pages are replaced as a whole, or stay as they were.

    Args:
        sites: what to build.
        max_seconds: how long each may take.

    Returns:
        By product what went wrong, if anything did; the others are built all the same.
    """
    failed: dict[ProductName, str] = {}
    with Scratch("docs") as fresh:
        drafts = {site.product: fresh / str(site.product) for site in sites}
        left = list(sites)
        while left:
            asked = {"sites": [_asked(site, drafts[site.product]) for site in left]}
            answers: list[dict[str, Any]] = []
            try:
                answers = child.run(__name__, asked, max_seconds=max_seconds)
            except child.ChildFailed as error:
                answers = [*error.answers, {"error": str(error)}][: len(left)]
            for site, answer in zip(left, answers, strict=False):
                if answer["error"]:
                    failed[site.product] = str(answer["error"])
                else:
                    _put(drafts[site.product], site)
            left = left[len(answers) :]
    return failed


def _asked(site: Site, draft: Path) -> dict[str, Any]:
    told = {
        f"{site.product}.{table}": [_traced(found) for found in validations if SKIPPED not in found["meta"]]
        for table, validations in site.validations.items()
    }
    suites = [
        {
            "name": name,
            "expectations": [found["expectation_config"] for found in validations],
            "result": suite_validation(name, validations),
        }
        for name, validations in told.items()
        if validations
    ]
    return {
        "product": str(site.product),
        "suites": suites,
        "folder": str(draft),
        "at": site.at.isoformat(),
    }


def _traced(validation: Mapping[str, Any]) -> dict[str, Any]:
    """A result as pages can show it: those of rules that raised need a traceback."""
    info = validation["exception_info"]
    if info.get("raised_exception") and not info.get("exception_traceback"):
        info = {**info, "exception_traceback": "It is not kept."}
    return {**validation, "exception_info": info}


def _put(draft: Path, site: Site) -> None:
    """Put the pages in place: beside the old ones first, since a draft may be on another disk."""
    if site.note is not None:
        name, content = site.note
        (draft / name).write_text(content, encoding="utf-8")
    site.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".docs-", dir=site.folder.parent) as beside:
        new, old = Path(beside) / "new", Path(beside) / "old"
        shutil.copytree(draft, new)
        if site.folder.exists():
            site.folder.rename(old)
        new.rename(site.folder)


# -- the child ----------------------------------------------------------------------------------------


def answers(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the parent asks: for each site why it could not be built, None if it was."""
    _register_foreign([suite for site in asked["sites"] for suite in site["suites"]])
    for site in asked["sites"]:
        try:
            _build_here(site)
        except Exception as error:  # noqa: BLE001 - whatever it raises is the answer to this one product
            yield {"error": f"{type(error).__name__}: {error}"}
        else:
            yield {"error": None}


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
                "base_directory": asked["folder"],
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
    # A page that cannot be rendered is only logged.
    said = _Said()
    logging.getLogger("great_expectations").addHandler(said)
    context.build_data_docs()
    logging.getLogger("great_expectations").removeHandler(said)
    pages = len(list((Path(asked["folder"]) / "validations").rglob("*.html")))
    if pages != len(asked["suites"]):
        why = f": {said.errors[-1]}" if said.errors else ""
        raise RuntimeError(f"{pages} of {len(asked['suites'])} pages could be rendered{why}")
    stand_alone(Path(asked["folder"]), asked)


class _Said(logging.Handler):
    """Keeps the lines of what is logged that name an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors += [line for line in record.getMessage().splitlines() if "Error: " in line]


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

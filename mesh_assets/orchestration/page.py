"""Great Expectations' Data Docs as a job of each domain: built anew, now and then, where checks are newer."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

from collections.abc import Sequence

import dagster as dg

from mesh_assets.checks import pages
from mesh_assets.contract.discovery import Product, discover
from mesh_assets.names import Layout, local_folder
from mesh_assets.orchestration.version import local_version
from mesh_assets.settings import Settings

PAGES_TAG = "mesh/data_docs"
"""Run tag with one value: Great Expectations takes a quarter of a gigabyte, so one run at a time has it."""

_CRON = "*/5 * * * *"
_LOG = "checks"
_EVALUATION = "evaluation"


def job_name(domain: str) -> str:
    """Name of the domain's job, and of its schedule."""
    return f"{domain}_data_docs"


def behind(layout: Layout, products: Sequence[Product]) -> list[Product]:
    """The products whose pages are older than their newest evaluation, or than their contract."""
    found = []
    for product in products:
        folder = local_folder(layout.catalog(product.name, _LOG))
        if folder is not None and pages.behind(layout, product, local_version(folder, _EVALUATION)):
            found.append(product)
    return found


def pages_job(domain: str) -> dg.JobDefinition:
    """The job that builds the pages of a domain's products that are behind."""

    @dg.op(
        name=f"build_{domain}_data_docs",
        out=dg.Out(dg.Nothing),
        description=f"Builds the Data Docs of the products of {domain} that were checked since.",
    )
    def build(context: dg.OpExecutionContext) -> None:
        _build(context, domain)

    @dg.job(
        name=job_name(domain),
        description=f"Great Expectations' Data Docs of the products of {domain}.",
        tags={PAGES_TAG: "one"},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        build()

    return job


def pages_schedule(domain: str, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Starts the job every few minutes if there is something to build; an idle domain starts no run."""

    @dg.schedule(
        name=job_name(domain),
        job=job,
        cron_schedule=_CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Builds the Data Docs of {domain} where rules were evaluated since.",
    )
    def schedule() -> dg.SkipReason | dg.RunRequest:
        found = behind(*_products(domain))
        if not found:
            return dg.SkipReason("no product was checked since its pages were built")
        return dg.RunRequest()

    return schedule


def _products(domain: str) -> tuple[Layout, list[Product]]:
    settings = Settings()
    found = discover(settings.products).products
    return Layout(settings.lake_root), [one for name, one in found.items() if name.domain == domain]


def _build(context: dg.OpExecutionContext, domain: str) -> None:
    layout, products = _products(domain)
    chosen = behind(layout, products)
    failed = pages.build(layout, chosen)
    built = [product.name for product in chosen if product.name not in failed]
    found = {str(name): first for name in built if (first := pages.page(layout, name)) is not None}
    context.add_output_metadata({name: dg.MetadataValue.path(first) for name, first in found.items()})
    for name, first in found.items():
        context.log.info(f"{name}: {first}")
    if failed:
        told = "; ".join(f"{name}: {wrong}" for name, wrong in failed.items())
        raise dg.Failure(f"Data Docs could not be built: {told}", allow_retries=False)
    if not chosen:
        context.log.info("no product was checked since its pages were built")

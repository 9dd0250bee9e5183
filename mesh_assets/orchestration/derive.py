"""The derive shift as a Dagster asset: all derived products of a domain, kept up by one run at a time."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mesh_assets.contract.discovery import Product, discover
from mesh_assets.errors import Fenced, ShiftBusy
from mesh_assets.names import Layout, ProductName
from mesh_assets.orchestration.relay import ACTIVE, Relay, turn_seconds
from mesh_assets.orchestration.report import RunObserver, Subject
from mesh_assets.orchestration.shift import SHIFT_TAG, acknowledge_cancel, deferred_interrupts
from mesh_assets.orchestration.subscription import (
    SEEN_TAG,
    Heads,
    code_text,
    input_products,
    root_sources,
    seen_text,
)
from mesh_assets.orchestration.version import newest_versions
from mesh_assets.settings import Settings

if TYPE_CHECKING:
    from mesh_assets.derive import DerivePlan

DERIVE_TAG = "mesh/derive"
"""Run tag ``<domain>``, of a domain's derive shifts (:mod:`mesh_assets.orchestration.relay`)."""

_WAIT_SECONDS = 600.0
_LOOK_SECONDS = 0.5
_EXPECT_SECONDS = 2.0


def job_name(domain: str) -> str:
    """Name of the job that the domain's sensor starts."""
    return f"{domain}_derive"


def derive_tag(domain: str) -> dict[str, str]:
    """The tag of a domain's derive shifts."""
    return {DERIVE_TAG: domain}


def derive_asset(domain: str, specs: Sequence[dg.AssetSpec]) -> dg.AssetsDefinition:
    """All derived tables of a domain as one asset definition: whichever is selected, all are kept up."""

    @dg.multi_asset(
        name=f"derive_{domain}",
        specs=specs,
        can_subset=True,
        description=(
            f"Derives the products of {domain} from new versions of the products that they subscribe to, "
            "whichever of their tables is selected, until no change comes any more or its time is over."
        ),
    )
    def derive(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        yield from _derive(context, domain)

    return derive


def derive_job(domain: str, specs: Sequence[dg.AssetSpec]) -> UnresolvedAssetJobDefinition:
    """The job that the sensor starts: all derived products, without the checks."""
    selection = dg.AssetSelection.assets(*(spec.key for spec in specs)).without_checks()
    return dg.define_asset_job(
        job_name(domain),
        selection=selection,
        description=f"One derive shift over the derived products of {domain}.",
        run_tags=derive_tag(domain),
        executor_def=dg.in_process_executor,
    )


class Expectation:
    """Whether changes of the inputs are to come, and up to which of their versions it was asked.

    Args:
        sources: what the inputs are captured from, as ``domain.source``.
        heads: looks up the newest versions of the inputs.
    """

    def __init__(
        self, instance: dg.DagsterInstance, sources: Sequence[str], heads: Callable[[], Heads]
    ) -> None:
        self._instance = instance
        self._sources = list(sources)
        self._heads = heads
        self._asked_at = float("-inf")
        self._answer = False
        self._latest = heads()
        self.seen = self._latest

    def __call__(self) -> bool:
        """Whether a shift over one of the sources runs or is about to; asks every two seconds at most."""
        now = time.monotonic()
        if now - self._asked_at >= _EXPECT_SECONDS:
            self._asked_at = now
            # What was there at the question before has been looked at since.
            self.seen, self._latest = self._latest, self._heads()
            statuses = [*ACTIVE, dg.DagsterRunStatus.QUEUED]
            running = dg.RunsFilter(tags={SHIFT_TAG: self._sources}, statuses=statuses)
            self._answer = bool(self._sources) and bool(self._instance.get_runs_count(running))
        return self._answer


def _derive(context: dg.AssetExecutionContext, domain: str) -> Iterator[dg.MaterializeResult[None]]:
    # What follows loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.derive import DeriveShift, derive_plans
    from mesh_assets.shift.report import Budget

    settings = Settings()
    layout = Layout(settings.lake_root)
    discovery = discover(settings.products)
    plans = derive_plans(settings, discovery, domain)
    if not plans:
        raise dg.Failure(f"{domain} has no derived product that can be run: look at the checks `loads`")
    products = [plan.product for plan in plans]
    inputs = input_products(products, discovery)
    instance, run_id = context.instance, context.run.run_id
    deadline = time.monotonic() + _WAIT_SECONDS

    def heads() -> Heads:
        return newest_versions(layout, inputs, instance)

    relay = Relay(instance, context.run, derive_tag(domain))
    with deferred_interrupts() as cancelled:
        observer = RunObserver(context, Subject.derived(domain, plans), cancelled, relay.relieved)
        note: dict[str, dg.MetadataValue] = {}
        asked = heads()
        while not cancelled():
            other = relay.other()
            if other is None:
                relay.begin()
                expecting = Expectation(instance, root_sources(products, discovery), heads)
                budget = Budget(
                    max_seconds=turn_seconds(settings.shift_seconds, domain), catching_up=not relay.in_line
                )
                shift = DeriveShift(
                    plans, budget=budget, observer=observer, run_id=run_id, expecting=expecting
                )
                try:
                    result = shift.run()
                except (Fenced, ShiftBusy) as error:
                    context.log.info(f"another shift derives these products: {error}")
                else:
                    relay.over()
                    observer.ended(result)
                    behind = _left_behind(plans, result.refused)
                    seen = seen_text(expecting.seen, code_text(products), behind)
                    instance.add_run_tags(run_id, {SEEN_TAG: seen})
                    break
            elif relay.in_line:
                relay.wait([*products, *inputs])
                continue
            else:
                note = {"mesh/derived_by": dg.MetadataValue.dagster_run(other.run_id)}
            if not _behind(layout, products, asked):
                context.log.info("the other shift has derived from what was there when this run began")
                break
            if time.monotonic() > deadline:
                raise dg.Failure(
                    f"{domain}: not derived by the other shift within {_WAIT_SECONDS:.0f} s", metadata=note
                )
            time.sleep(_LOOK_SECONDS)
        if cancelled():
            observer.flush()
            context.log.info("cancelled: the shift ended between two versions; nothing is lost")
            acknowledge_cancel(instance, run_id)
            raise dg.DagsterExecutionInterruptedError
        yield from observer.results(note)


def _left_behind(plans: "Sequence[DerivePlan]", refused: Mapping[str, str]) -> list[ProductName]:
    """The products that another shift may bring further though nothing else changes.

    Not those that were refused for good: ``pending`` leaves out what fails with these inputs, and a
    refusal without a state, of this shift, is one of the contract itself.
    """
    found = []
    for plan in plans:
        refusal = plan.refusal()
        for_good = refusal is not None and not refusal["state"] and str(plan.name) in refused
        if not for_good and plan.pending() is not None:
            found.append(plan.name)
    return found


def _behind(layout: Layout, products: Sequence[Product], heads: Heads) -> bool:
    """Whether a product is not yet made of these versions of its inputs."""
    from mesh_assets.status import latest_version

    for product in products:
        row = latest_version(layout, product.name)
        for one in product.definition.inputs:
            head = heads.get(one.product, 0)
            if head and (row is None or row.parents.get(str(one.product), 0) < head):
                return True
    return False

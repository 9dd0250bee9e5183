"""The capture shift as a Dagster asset: all tables of one source, drained by one run at a time."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mesh_assets.errors import Fenced, SlotBusy
from mesh_assets.orchestration.relay import Relay, turn_seconds
from mesh_assets.orchestration.report import RunObserver, lsn_text
from mesh_assets.settings import Settings

SHIFT_TAG = "mesh/shift"
"""Run tag ``<domain>.<source>``, of a source's shifts (:mod:`mesh_assets.orchestration.relay`)."""

_WAIT_SECONDS = 600.0
_LOOK_SECONDS = 0.5


def job_name(domain: str, source: str) -> str:
    """Name of the job that the domain's sensor starts for a source."""
    return f"{domain}_{source}_shift"


def shift_tag(domain: str, source: str) -> dict[str, str]:
    """The tag of a source's shifts."""
    return {SHIFT_TAG: f"{domain}.{source}"}


def capture_asset(domain: str, source: str, specs: Sequence[dg.AssetSpec]) -> dg.AssetsDefinition:
    """All tables of a source as one asset definition: whichever is selected, the source is drained."""

    @dg.multi_asset(
        name=f"drain_{domain}_{source}",
        specs=specs,
        can_subset=True,
        description=(
            f"Drains source {domain}.{source} into the change logs of all its products, whichever of "
            "their tables is selected, until no change comes any more or its time is over."
        ),
    )
    def drain(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        yield from _drain(context, domain, source)

    return drain


def capture_job(domain: str, source: str, specs: Sequence[dg.AssetSpec]) -> UnresolvedAssetJobDefinition:
    """The job that the sensor starts: the whole source, without the checks."""
    selection = dg.AssetSelection.assets(*(spec.key for spec in specs)).without_checks()
    return dg.define_asset_job(
        job_name(domain, source),
        selection=selection,
        description=f"One capture shift over source {domain}.{source}.",
        run_tags=shift_tag(domain, source),
        executor_def=dg.in_process_executor,
    )


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM and SIGINT instead of raising at once; yields a function that says if one came.

    Dagster cancels a run by a signal that would otherwise raise in the middle of a batch. Outside of
    the main thread no handler can be set, and nothing is ever noted.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def acknowledge_cancel(instance: dg.DagsterInstance, run_id: str) -> None:
    """Say of a run that it was asked to end, if Dagster does not know.

    A mesh that stops asks its workers, not Dagster, which would call it a failure.
    """
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status != dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceling(run, message="its worker was asked to end")


def _drain(
    context: dg.AssetExecutionContext, domain: str, source: str
) -> Iterator[dg.MaterializeResult[None]]:
    # What follows loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.cdc.source import Source
    from mesh_assets.contract.discovery import discover
    from mesh_assets.ingest.shift import Shift
    from mesh_assets.shift.plan import capture_plan
    from mesh_assets.shift.report import Budget

    settings = Settings()
    plan = capture_plan(settings, discover(settings.products), domain, source)
    instance, run_id = context.instance, context.run.run_id
    deadline = time.monotonic() + _WAIT_SECONDS

    relay = Relay(instance, context.run, shift_tag(domain, source))
    with deferred_interrupts() as cancelled, Source(plan.source) as asked:
        observer = RunObserver(context, plan, cancelled, relay.relieved)
        note: dict[str, dg.MetadataValue] = {}
        head_lsn: int | None = None
        while not cancelled():
            other = relay.other()
            if other is None:
                relay.begin()
                # Whoever asked for the table as it is now does not wait for a busy source to be idle.
                budget = Budget(
                    max_seconds=turn_seconds(settings.shift_seconds, f"{domain}.{source}"),
                    catching_up=not relay.in_line,
                )
                try:
                    result = Shift(plan, budget=budget, observer=observer, run_id=run_id).run()
                except (SlotBusy, Fenced) as error:
                    # Another process has the slot: it captures what this run was asked for.
                    context.log.info(f"another shift drains the source: {error}")
                else:
                    relay.over()
                    observer.ended(result)
                    break
            elif relay.in_line:
                relay.wait(plan.definitions.values())
                continue
            if head_lsn is None:
                # Written now, so the other shift passes it after everything committed until now.
                head_lsn = asked.heartbeat()
                context.log.info(f"waiting until the other shift has captured up to {lsn_text(head_lsn)}")
            if other is not None:
                note = {"mesh/captured_by": dg.MetadataValue.dagster_run(other.run_id)}
            slot = asked.slot()
            if slot is not None and slot.confirmed_lsn >= head_lsn:
                context.log.info(f"the other shift has captured up to {lsn_text(slot.confirmed_lsn)}")
                break
            if time.monotonic() > deadline:
                raise dg.Failure(
                    f"{domain}.{source}: {lsn_text(head_lsn)} was not captured within {_WAIT_SECONDS:.0f} s",
                    metadata=note,
                )
            time.sleep(_LOOK_SECONDS)
        if cancelled():
            observer.flush()
            context.log.info("cancelled: the shift ended between two batches; nothing is lost")
            acknowledge_cancel(instance, run_id)
            raise dg.DagsterExecutionInterruptedError
        yield from observer.results(note)

"""What belongs to no domain: the upkeep of Dagster's own event log."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

import dagster as dg

from mesh_assets.orchestration.prune import Keeping, prune

DOMAIN = "enterprise"


def enterprise_definitions() -> dg.Definitions:
    """Assets and schedules of the ``enterprise`` code location."""

    @dg.asset(
        key=[DOMAIN, "event_log"],
        group_name="upkeep",
        kinds={"postgres"},
        owners=["team:platform"],
        description=(
            "Dagster's event log, kept bounded: old runs are deleted, and of old reports only the newest "
            "per table and run stay. What was captured, and when, is in the products' version logs for good."
        ),
    )
    def event_log(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        pruned = prune(context.instance, Keeping())
        context.log.info(
            f"removed {pruned.run_count} runs, {pruned.report_count} reports and "
            f"{pruned.check_count} evaluations of checks"
        )
        return dg.MaterializeResult(
            metadata={
                "upkeep/runs": pruned.run_count,
                "upkeep/reports": pruned.report_count,
                "upkeep/evaluations": pruned.check_count,
            }
        )

    upkeep = dg.define_asset_job(
        "upkeep", selection=dg.AssetSelection.assets(event_log), executor_def=dg.in_process_executor
    )
    hourly = dg.ScheduleDefinition(
        name="upkeep_hourly",
        job=upkeep,
        cron_schedule="17 * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Keeps Dagster's event log bounded.",
    )
    return dg.Definitions(
        assets=[event_log], jobs=[upkeep], schedules=[hourly], executor=dg.in_process_executor
    )

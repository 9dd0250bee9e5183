"""What belongs to no domain: the enterprise catalog, and the upkeep of Dagster's own event log."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

import dagster as dg

from mesh_assets.contract.discovery import discover
from mesh_assets.orchestration.catalog import (
    DOMAIN,
    EXPLAINED,
    OWNER,
    catalog_asset,
    catalog_checks,
    catalog_job,
    catalog_key,
    catalog_sensor,
    catalog_specs,
    explained_check,
)
from mesh_assets.orchestration.prune import Keeping, prune
from mesh_assets.settings import Settings

__all__ = ["DOMAIN", "enterprise_definitions"]


def enterprise_definitions() -> dg.Definitions:
    """Assets, checks, sensor and schedules of the ``enterprise`` code location."""
    settings = Settings()
    products = list(discover(settings.products).products.values())
    specs = catalog_specs(products, settings)
    fold = catalog_job(specs)

    @dg.asset(
        key=[DOMAIN, "event_log"],
        group_name="upkeep",
        kinds={"postgres"},
        owners=[OWNER],
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
        "upkeep",
        selection=dg.AssetSelection.assets(event_log)
        | dg.AssetSelection.checks(dg.AssetCheckKey(catalog_key("runs"), EXPLAINED)),
        executor_def=dg.in_process_executor,
    )
    hourly = dg.ScheduleDefinition(
        name="upkeep_hourly",
        job=upkeep,
        cron_schedule="17 * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Keeps Dagster's event log bounded, and looks whether lineage is complete.",
    )
    return dg.Definitions(
        assets=[event_log, catalog_asset(specs)],
        asset_checks=[catalog_checks(), explained_check()],
        jobs=[upkeep, fold],
        schedules=[hourly],
        sensors=[catalog_sensor(products, fold)],
        executor=dg.in_process_executor,
    )

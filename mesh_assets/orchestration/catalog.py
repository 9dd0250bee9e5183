"""The enterprise catalog as Dagster assets: its tables, folded from what all products publish."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mesh_assets.contract.discovery import Product, discover
from mesh_assets.names import CURRENT, Layout, local_folder
from mesh_assets.orchestration.asset import COLUMN_SCHEMA, ROW_COUNT, TABLE_NAME, URI, asset_key
from mesh_assets.orchestration.relay import ACTIVE
from mesh_assets.orchestration.version import newest_versions
from mesh_assets.settings import Settings

DOMAIN = "enterprise"
GROUP = "catalog"
OWNER = "team:platform"
CATALOG_TAG = "mesh/catalog"
"""Run tag; the run queue lets one run of a value start (``dagster.yaml``)."""

PARTS = {
    "datasets": "One row per table of a product: what it promises and how it stands.",
    "columns": "One row per column of a table: its type, meaning and classification.",
    "edges": "One row per way from one table or column to another.",
    "runs": "One row per lineage run: what it read and wrote, and how it ended.",
    "checks": "One row per quality rule: how it came out last.",
    "domains": "One row per domain: who owns it and what it offers.",
    "changes": "The change history of all products: one row per product version.",
}
"""The tables of the catalog, and what a row of each is."""

CHECKS = {
    "orphans": ("orphan", "datasets", "Products without a folder, and inputs that no product publishes."),
    "unowned": ("unowned", "domains", "Products and domains that belong to nobody."),
    "stale": ("stale", "datasets", "Products that nobody looks after, or that lag behind what they promise."),
    "failing": ("failing", "checks", "Quality rules that are not met, and jobs whose newest run failed."),
}
"""Checks of the catalog: name -> the kind of finding, the part that it is shown with, what it finds."""

EXPLAINED = "explained"
"""Check of the catalog's runs: every commit of every product was made by exactly one lineage run."""

TICK_SECONDS = 10
LEAST_SECONDS = 60.0
"""Least time from one fold's start to the next one's."""

_RECORD = "record.json"
_MOST_LINES = 200
_EXPLAINED_AGE = timedelta(days=1)
_MOST_SENTENCES = 3


def catalog_key(part: str) -> dg.AssetKey:
    """Dagster's key of one table of the catalog."""
    return dg.AssetKey([DOMAIN, GROUP, part])


def catalog_specs(products: Sequence[Product], settings: Settings) -> list[dg.AssetSpec]:
    """One asset per table of the catalog; all are folded from all products."""
    layout = Layout(settings.lake_root)
    deps = [asset_key(one.name, CURRENT, table.name) for one in products for table in one.contract.tables]
    return [
        dg.AssetSpec(
            key=catalog_key(part),
            group_name=GROUP,
            kinds={"deltalake", "polars"},
            owners=[OWNER],
            description=meaning,
            deps=deps,
            metadata={URI: layout.enterprise(part), TABLE_NAME: f"{DOMAIN}.{part}"},
        )
        for part, meaning in PARTS.items()
    ]


def catalog_asset(specs: Sequence[dg.AssetSpec]) -> dg.AssetsDefinition:
    """All tables of the catalog as one asset definition."""

    @dg.multi_asset(
        name="fold_catalog",
        specs=specs,
        can_subset=True,
        description=(
            "Folds the records, versions and lineage of all products, as far as they are new, into the "
            "catalog's tables, and closes lineage runs that have died."
        ),
    )
    def fold_catalog(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        yield from _fold(context)

    return fold_catalog


def catalog_checks() -> dg.AssetChecksDefinition:
    """What is wrong in the catalog, one check per kind of finding."""

    @dg.multi_asset_check(
        name="find_in_catalog",
        specs=[
            dg.AssetCheckSpec(name=name, asset=catalog_key(part), description=meaning)
            for name, (_, part, meaning) in CHECKS.items()
        ],
        can_subset=True,
        description="Looks through the catalog for what somebody should look at.",
    )
    def find_in_catalog(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield from _find(context)

    return find_in_catalog


def explained_check() -> dg.AssetChecksDefinition:
    """Lineage is complete; looked at every hour and on demand, since it reads every commit of a day."""

    @dg.asset_check(
        asset=catalog_key("runs"),
        name=EXPLAINED,
        description=(
            "Every commit that the last day has brought to a product's tables is explained by exactly one "
            "lineage run. Evaluated every hour and on demand."
        ),
    )
    def explained(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return _explained(context)

    return explained


def catalog_job(specs: Sequence[dg.AssetSpec]) -> UnresolvedAssetJobDefinition:
    """The job that the sensor starts: all tables, and what is found in them."""
    keys = [spec.key for spec in specs]
    checks = [dg.AssetCheckKey(catalog_key(part), name) for name, (_, part, _) in CHECKS.items()]
    return dg.define_asset_job(
        "enterprise_catalog",
        selection=dg.AssetSelection.assets(*keys).without_checks() | dg.AssetSelection.checks(*checks),
        description="Brings the enterprise catalog up to what products have published.",
        run_tags={CATALOG_TAG: DOMAIN},
        executor_def=dg.in_process_executor,
    )


def catalog_sensor(products: Sequence[Product], job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Starts a fold when a product has published something new, at a bounded rate."""

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return _tick(context, products)

    return dg.SensorDefinition(
        name="enterprise_published",
        evaluation_fn=evaluate,
        job=job,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Folds the enterprise catalog when a product has published something new, at most every "
            f"{LEAST_SECONDS:.0f} seconds."
        ),
    )


def _tick(
    context: dg.SensorEvaluationContext, products: Sequence[Product]
) -> dg.SensorResult | dg.SkipReason:
    published = _published(products, context.instance)
    try:
        held = json.loads(context.cursor or "{}")
        seen, started_at = str(held.get("seen", "")), float(held.get("started_at", 0.0))
    except (ValueError, TypeError, AttributeError):
        seen, started_at = "", 0.0
    now = datetime.now(UTC).timestamp()
    if not published or published == seen:
        return dg.SkipReason("nothing new was published")
    if now - started_at < LEAST_SECONDS:
        return dg.SkipReason(f"the next fold starts in {started_at + LEAST_SECONDS - now:.0f} s")
    statuses = [*ACTIVE, dg.DagsterRunStatus.QUEUED]
    if context.instance.get_runs_count(dg.RunsFilter(tags={CATALOG_TAG: DOMAIN}, statuses=statuses)):
        return dg.SkipReason("a fold is under way")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(tags={CATALOG_TAG: DOMAIN})],
        cursor=json.dumps({"seen": published, "started_at": now}),
    )


def _published(products: Sequence[Product], instance: dg.DagsterInstance) -> str:
    """Changes when a product publishes its record; empty before the first does."""
    layout, states = Layout(Settings().lake_root), []
    for product in products:
        folder = local_folder(layout.catalog(product.name))
        if folder is None:
            versions = newest_versions(layout, [product], instance)
            states += [f"{name} {version}" for name, version in versions.items() if version]
            continue
        try:
            status = (folder / _RECORD).stat()
        except FileNotFoundError:
            continue
        states.append(f"{product.name} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(states).encode()).hexdigest() if states else ""


def _fold(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    # What follows loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.catalog.canonical import Canonical
    from mesh_assets.catalog.enterprise import fold
    from mesh_assets.catalog.shape import SHAPES

    layout = Layout(Settings().lake_root)
    _close_dead_runs(context, layout)
    summary = fold(layout)
    for problem in summary.problems:
        context.log.warning(problem)
    context.log.info(
        f"{summary.product_count} products, {summary.event_count} lineage events and "
        f"{sum(summary.file_count.values())} buckets folded in {summary.seconds:.1f} s"
    )
    for part in PARTS:
        key = catalog_key(part)
        if key not in context.selected_asset_keys:
            continue
        shape = SHAPES[part]
        table = Canonical(layout.enterprise(part), shape)
        columns = [dg.TableColumn(name=field.name, type=str(field.type)) for field in shape.schema]
        yield dg.MaterializeResult(
            asset_key=key,
            metadata={
                ROW_COUNT: sum(bucket.file.row_count for bucket in table.buckets().values()),
                "delta/version": table.version,
                COLUMN_SCHEMA: dg.TableSchema(columns),
                "catalog/products": summary.product_count,
                "catalog/buckets_written": summary.file_count[part],
                "catalog/seconds": round(summary.seconds, 3),
                "catalog/problems": len(summary.problems),
            },
            data_version=dg.DataVersion(str(table.version)),
        )


def _find(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    # What follows loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.catalog.finding import Catalog, findings

    settings = Settings()
    discovery = discover(settings.products)
    defined = {str(name) for name in discovery.products}
    defined |= {f"{folder.parent.name}.{folder.name}" for folder, _ in discovery.broken}
    found = findings(Catalog.load(Layout(settings.lake_root)), defined=defined)
    selected = set(context.selected_asset_check_keys)
    for name, (kind, part, _) in CHECKS.items():
        if dg.AssetCheckKey(catalog_key(part), name) not in selected:
            continue
        mine = [one for one in found if one.kind == kind]
        grave = [one for one in mine if one.severity == "error"]
        lines = [
            f"- **{one.subject}**: {one.message} ({', '.join(one.owners)})" for one in mine[:_MOST_LINES]
        ]
        yield dg.AssetCheckResult(
            asset_key=catalog_key(part),
            check_name=name,
            passed=not mine,
            severity=dg.AssetCheckSeverity.ERROR if grave else dg.AssetCheckSeverity.WARN,
            description="; ".join(one.message for one in mine[:_MOST_SENTENCES]) or "nothing found",
            metadata={
                "catalog/findings": len(mine),
                "catalog/errors": len(grave),
                **({"catalog/list": dg.MetadataValue.md("\n".join(lines))} if lines else {}),
            },
        )


def _explained(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    # What follows loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.lineage.completeness import explain_further
    from mesh_assets.lineage.recorder import Recorder

    settings, since = Settings(), datetime.now(UTC) - _EXPLAINED_AGE
    layout = Layout(settings.lake_root)
    commit_count, wrong = 0, []
    with Recorder(layout.lineage(), log=context.log.info) as recorder:
        for name, product in discover(settings.products).products.items():
            tables = [table.name for table in product.contract.tables]
            found = explain_further(layout, name, tables, since=since, emitter=recorder)
            commit_count += found.commit_count
            if not found.complete:
                wrong.append(f"{name}: {found.sentence()}")
                context.log.warning(wrong[-1])
    return dg.AssetCheckResult(
        passed=not wrong,
        description="; ".join(wrong[:_MOST_SENTENCES])
        or f"{commit_count:,} commits since the last look, each explained by one run",
        metadata={"lineage/commits": commit_count, "lineage/products_unexplained": len(wrong)},
    )


def _close_dead_runs(context: dg.AssetExecutionContext, layout: Layout) -> None:
    """Tell the end of lineage runs that died before they could."""
    from mesh_assets.lineage.reconcile import OpenRun, close_dead
    from mesh_assets.lineage.recorder import Recorder

    def alive(run: OpenRun) -> bool | None:
        """Dagster knows of the end of a run, but not that its worker lives."""
        found = context.instance.get_run_by_id(run.orchestrator) if run.orchestrator else None
        return False if found is not None and found.is_finished else None

    with Recorder(layout.lineage(), log=context.log.info) as recorder:
        for run in close_dead(layout.lineage(), recorder, alive=alive):
            context.log.warning(f"lineage run {run.run_id} of {run.job} died and was closed")

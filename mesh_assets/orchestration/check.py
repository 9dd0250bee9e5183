"""Asset checks: parity of a table with its source, and whether a product could be loaded at all."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

from collections.abc import Sequence

import dagster as dg

from mesh_assets.contract.discovery import Product
from mesh_assets.errors import MeshError
from mesh_assets.names import CURRENT, ProductName
from mesh_assets.orchestration.asset import asset_key
from mesh_assets.orchestration.report import lsn_text
from mesh_assets.settings import Settings

PARITY = "parity"
LOADS = "loads"


def parity_checks(products: Sequence[Product]) -> list[dg.AssetChecksDefinition]:
    """One check per table, run on demand: at one and the same position, source and lake are equal."""
    return [_parity_check(product, table.name) for product in products for table in product.contract.tables]


def loads_check(name: ProductName, error: MeshError) -> dg.AssetChecksDefinition:
    """The check of a product that could not be loaded: it fails and says why."""

    @dg.asset_check(
        asset=[name.domain, name.product],
        name=LOADS,
        description="Whether contract.yaml and defs.yaml of the product are right.",
    )
    def loads() -> dg.AssetCheckResult:
        return loads_result(error)

    return loads


def loads_result(error: MeshError) -> dg.AssetCheckResult:
    """The outcome of :func:`loads_check`."""
    return dg.AssetCheckResult(passed=False, metadata={"error": dg.MetadataValue.md(f"```\n{error}\n```")})


def _parity_check(product: Product, table: str) -> dg.AssetChecksDefinition:
    name = product.name

    @dg.asset_check(
        asset=asset_key(name, CURRENT, table),
        name=PARITY,
        description=(
            "Reads the source through an exported snapshot and compares row count and content, range of "
            "keys by range of keys, with the product at exactly that position. Runs on demand."
        ),
    )
    def parity(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return parity_result(name, table, context)

    return parity


def parity_result(
    name: ProductName, table: str, context: dg.AssetCheckExecutionContext
) -> dg.AssetCheckResult:
    """Compare one table with its source, as ``mesh parity`` does."""
    # Loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.contract.discovery import discover
    from mesh_assets.parity import parity
    from mesh_assets.plan import capture_plan

    settings = Settings()
    discovery = discover(settings.products)
    source = discovery.product(name).definition.source
    plan = capture_plan(settings, discovery, name.domain, source)
    target = next(target for target in plan.targets if (target.name, target.table) == (name, table))
    result = parity(plan, target)
    context.log.info(result.sentence())
    return dg.AssetCheckResult(
        passed=result.equal,
        description=result.sentence(),
        metadata={
            "cdc/position": lsn_text(result.lsn),
            "parity/source_rows": result.row_count,
            "parity/lake_rows": result.lake_row_count,
            "parity/key_ranges": len(result.ranges),
            "parity/seconds": round(result.seconds, 3),
        },
    )

"""Asset checks: quality rules, parity of a table with its source, whether a product could be loaded."""

# Dagster reads the annotation of `context` as an object: no postponed annotations in this module.

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from mesh_assets.contract.discovery import Product
from mesh_assets.errors import MeshError
from mesh_assets.names import CURRENT, Layout, ProductName
from mesh_assets.orchestration.asset import VERSION, asset_key
from mesh_assets.orchestration.outcome import check_evaluation
from mesh_assets.orchestration.report import lsn_text
from mesh_assets.orchestration.rule import ListedRule
from mesh_assets.settings import Settings

PARITY = "parity"
LOADS = "loads"

_PARITY_OF_CAPTURED = (
    "Reads the source through an exported snapshot and compares row count and content, range of keys by "
    "range of keys, with the product at exactly that position. Runs on demand."
)
_PARITY_OF_DERIVED = (
    "Derives the whole product again from the versions that its newest version was made of, and compares "
    "row count and content. Runs on demand."
)


def parity_checks(products: Sequence[Product]) -> list[dg.AssetChecksDefinition]:
    """One check per table, run on demand: the lake holds what its source, or its transform, says."""
    return [_parity_check(product, table.name) for product in products for table in product.contract.tables]


def quality_checks(
    products: Sequence[Product], rules: Mapping[ProductName, Sequence[ListedRule]]
) -> list[dg.AssetChecksDefinition]:
    """One check per quality rule: shifts report how it comes out, and it can be evaluated on demand."""
    return [_quality_checks(product, rules[product.name]) for product in products if rules.get(product.name)]


def _quality_checks(product: Product, rules: Sequence[ListedRule]) -> dg.AssetChecksDefinition:
    name = product.name

    @dg.multi_asset_check(
        name=f"quality_{name.domain}_{name.product}",
        specs=[_check_spec(product, rule) for rule in rules],
        can_subset=True,
        description=f"Evaluates the quality rules of {name} on its newest version.",
    )
    def quality(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield from quality_results(name, context)

    return quality


def _check_spec(product: Product, rule: ListedRule) -> dg.AssetCheckSpec:
    columns = f" Columns: {', '.join(f'`{column}`' for column in rule.columns)}." if rule.columns else ""
    # A row that breaks a blocking rule never gets to the table: nothing below it has to wait.
    blocking = rule.blocking and rule.scope == "table"
    effect = ""
    if rule.blocking:
        effect = (
            " Consumers do not advance while it fails." if blocking else " Rows that break it are kept out."
        )
    return dg.AssetCheckSpec(
        name=rule.check_name,
        asset=asset_key(product.name, CURRENT, rule.table),
        description=f"{rule.description or rule.id}{columns}{effect}",
        blocking=blocking,
        metadata={
            "quality/rule": rule.id,
            "quality/severity": rule.severity,
            "quality/scope": rule.scope,
            **({"quality/dimension": rule.dimension} if rule.dimension else {}),
            "dagster/code_references": dg.CodeReferencesMetadataValue(
                code_references=[
                    dg.LocalFileCodeReference(file_path=rule.path, line_number=rule.line, label="rule")
                ]
            ),
        },
    )


def quality_results(
    name: ProductName, context: dg.AssetCheckExecutionContext
) -> Iterator[dg.AssetCheckResult]:
    """Evaluate a product's rules on its newest version, as a shift does; results of the selected ones."""
    # Loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.checks.evaluation import check_product
    from mesh_assets.contract.discovery import discover

    settings = Settings()
    layout = Layout(settings.lake_root)
    product = discover(settings.products).product(name)
    selected = set(context.selected_asset_check_keys)
    for found in check_product(layout, product, run_id=context.run.run_id):
        checked = found.shown(product.contract)
        evaluation = check_evaluation(name, checked, layout)
        if dg.AssetCheckKey(evaluation.asset_key, evaluation.check_name) in selected:
            context.log.info(checked.sentence())
            yield dg.AssetCheckResult(
                asset_key=evaluation.asset_key,
                check_name=evaluation.check_name,
                passed=evaluation.passed,
                severity=evaluation.severity,
                description=evaluation.description,
                metadata=evaluation.metadata,
            )


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
        description=_PARITY_OF_DERIVED if product.derived else _PARITY_OF_CAPTURED,
    )
    def parity(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return parity_result(name, table, context)

    return parity


def parity_result(
    name: ProductName, table: str, context: dg.AssetCheckExecutionContext
) -> dg.AssetCheckResult:
    """Compare one table with its source, or with what it is derived from, as ``mesh parity`` does."""
    # Loads the Delta Lake library, which a code server has no need of.
    from mesh_assets.product import Mesh
    from mesh_assets.quality.concealment import secret

    mesh = Mesh()
    result = mesh.parity(f"{name}.{table}", run_id=context.run.run_id)
    said = result.sentence(secret(mesh.product(str(name)).contract.table(table)))
    position: dict[str, str | int] = {"cdc/position": lsn_text(result.lsn)}
    if result.version is not None:
        position = {VERSION: result.version}
    context.log.info(said)
    return dg.AssetCheckResult(
        passed=result.equal,
        description=said,
        metadata={
            **position,
            "parity/quarantined_keys": result.quarantined_count,
            "parity/source_rows": result.row_count,
            "parity/lake_rows": result.lake_row_count,
            "parity/key_ranges": len(result.ranges),
            "parity/seconds": round(result.seconds, 3),
        },
    )

"""Evaluates a product's quality rules on one version.

Row rules that block never fail in current; such a rule fails here while quarantine holds changes of it.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mesh_assets.checks.log import Checked, CheckLog, rules_hash
from mesh_assets.contract.discovery import Product
from mesh_assets.lake.access import Principal
from mesh_assets.lake.log import ChangeLog
from mesh_assets.lake.quarantine import RULES, last_rows, open_rows
from mesh_assets.lake.read import fresh
from mesh_assets.lake.tail import shape_of
from mesh_assets.lake.version import Cut, VersionLog, VersionRow
from mesh_assets.lineage.check import check_run
from mesh_assets.lineage.facet import Assertion
from mesh_assets.names import CHANGES, Layout
from mesh_assets.quality.concealment import concealing, discreet, secret
from mesh_assets.quality.result import Outcome
from mesh_assets.quality.rule import Query, Ruleset, Severity, Status

if TYPE_CHECKING:
    from mesh_assets.shift.lineage import Tending

WHAT = "its quality rules could not be evaluated"


def check_product(
    layout: Layout,
    product: Product,
    version: VersionRow | int | None = None,
    *,
    run_id: str = "",
    ruleset: Ruleset | None = None,
    tending: Tending | None = None,
) -> list[Checked]:
    """Evaluate all rules of a product on one version, and keep the outcomes.

    Args:
        layout: of the lake.
        product: whose contract and suites hold the rules.
        version: which; the newest by default.
        run_id: of the run in whose name this is done.
        ruleset: the rules, if they are loaded already.
        tending: the lineage of the shift that this belongs to; a run of its own when left out.

    Returns:
        One outcome per rule; none if the product has no rule.

    Raises:
        TableMissing: if the product has no version yet.
        AsOfRefused: if there is no such version.
        ContractError: if a rule is wrong.
    """
    from mesh_assets.quality import evaluate, load

    ruleset = load(product) if ruleset is None else ruleset
    cut: VersionRow | Cut
    if isinstance(version, VersionRow):
        number, cut = version.version, version
    else:
        cut = VersionLog.open(layout.versions(product.name)).resolve(
            version,
            log=lambda table, generation: ChangeLog.open(
                layout.table(product.name, CHANGES, table, generation)
            ),
        )
        number = cut.version or 0
    tables = cut.tables
    if not ruleset.rules:
        return []
    at = datetime.now(UTC)
    rows = []
    log = CheckLog(layout, product.name)
    checked = [table for table in dict.fromkeys(rule.table for rule in ruleset.rules) if table in tables]
    queries = any(isinstance(rule.check, Query) for rule in ruleset.table_rules)
    with (
        check_run(
            layout,
            product.contract,
            number,
            checked,
            log.uri,
            generations=cut.generations,
            recorder=tending.recorder if tending else None,
            parent=tending.parent(product.name) if tending else None,
            orchestrator=run_id,
        ) as lineage,
        discreet(concealing(product.contract, WHAT)),
    ):
        # A query may read any table of the product, at the same cut.
        frames = {
            # With the exact texts: values that do not fit their column are judged by them.
            table: fresh(
                layout,
                product.name,
                table,
                seq,
                principal=Principal.local(),
                generation=cut.generation(table),
                meta=True,
            )
            for table, seq in tables.items()
            if queries or table in checked
        }
        for table in checked:
            others = {name: other for name, other in frames.items() if name != table}
            log_uri = layout.table(product.name, CHANGES, table, cut.generation(table))
            quarantined = _quarantined(ChangeLog.open(log_uri), tables[table])
            mine = [
                _checked(
                    found,
                    quarantined[found.rule.id],
                    version=number,
                    contract_hash=product.contract.hash,
                    rules_hash=rules_hash(ruleset),
                    run_id=run_id,
                    at=at,
                ).concealed(product.contract)
                for found in evaluate(ruleset.for_table(table), frames[table], others=others)
            ]
            counts = [row.row_count for row in mine if row.row_count is not None]
            told = [_assertion(row.concealed(product.contract, secret)) for row in mine]
            lineage.outcomes(table, told, row_count=max(counts, default=None))
            rows += mine
        return log.append(rows)


def _assertion(row: Checked) -> Assertion:
    """One outcome, as it is told beyond the lake, as lineage has it."""
    result = json.loads(row.result or "{}")
    configuration = result.get("expectation_config") or {}
    return Assertion(
        name=row.rule,
        assertion=str(configuration.get("type") or row.dimension or "rule"),
        success=row.passed,
        column=row.columns[0] if len(row.columns) == 1 else None,
        severity="error" if row.severity == Severity.ERROR else "warn",
        description=row.description or None,
        actual=row.observed
        or (None if row.unexpected_count is None else f"{row.unexpected_count} unexpected"),
    )


def _quarantined(log: ChangeLog, seq: int) -> Counter[str]:
    """How many keys each rule keeps in quarantine."""
    last = last_rows(shape_of(log), open_rows(log, seq))
    return Counter(last[RULES].explode(empty_as_null=False).drop_nulls().to_list())


def _checked(found: Outcome, quarantined_count: int, **known: Any) -> Checked:  # noqa: ANN401
    rule, status, message = found.rule, found.status, found.message
    if quarantined_count and found.success:
        status = Status.WARNING if rule.severity is Severity.WARNING else Status.FAILED
        kept = "1 key is" if quarantined_count == 1 else f"{quarantined_count:,} keys are"
        message = f"{kept} in quarantine by it"
    observed = found.result["result"].get("observed_value")
    return Checked(
        evaluation=0,
        rule=rule.id,
        table=rule.table,
        columns=rule.columns,
        status=status.value,
        severity=rule.severity.value,
        scope=rule.scope.value,
        blocking=rule.blocking,
        dimension=rule.dimension,
        description=rule.description,
        message=message,
        observed="" if observed is None else json.dumps(observed, ensure_ascii=False),
        unexpected_count=found.unexpected_count,
        row_count=found.row_count,
        quarantined_count=quarantined_count,
        result=json.dumps(found.result, ensure_ascii=False),
        **known,
    )

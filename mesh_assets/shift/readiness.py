"""What must hold before a source's tables are captured; what is wrong with one does not stop the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.source import Source
from mesh_assets.contract import compatibility
from mesh_assets.contract.arrow import compare
from mesh_assets.contract.discovery import Product
from mesh_assets.errors import (
    ContractError,
    CredentialsRejected,
    IdentityMissing,
    MeshError,
    SourceNotReady,
    TableRefused,
    UnknownName,
)
from mesh_assets.names import Layout, ProductName
from mesh_assets.quality import load
from mesh_assets.quality.gate import Gate
from mesh_assets.quality.rule import Ruleset, Scope
from mesh_assets.shift.plan import CapturePlan, Target
from mesh_assets.shift.release import check_release, keep_old_versions

TABLE_ERRORS = (IdentityMissing, TableRefused, UnknownName, ContractError)
"""What is wrong with one table only: the others go on."""


def preflight(plan: CapturePlan, source: Source) -> tuple[dict[str, Relation], dict[str, MeshError]]:
    """The source's tables as described, and those that cannot be captured as they are.

    Raises:
        SourceError: if the source itself is not ready, or none of its tables is.
    """
    # Credentials may be refused to all tables or to one that this user may not read.
    own = (*TABLE_ERRORS, CredentialsRejected)
    try:
        return source.preflight(), {}
    except (*own, SourceNotReady) as error:
        relations: dict[str, Relation] = {}
        unfit: dict[str, MeshError] = {}
        for table in plan.source.tables:
            with Source(replace(plan.source, tables=(table,))) as alone:
                try:
                    relations |= alone.preflight()
                except own as problem:
                    unfit[table] = problem
                except SourceNotReady as problems:
                    if not all(isinstance(problem, own) for problem in problems.problems):
                        raise
                    unfit[table] = problems
        if not relations:
            raise error from None
        return relations, unfit


def check_contract(plan: CapturePlan, target: Target, relation: Relation) -> None:
    """Refuse a table that cannot keep what its contract promises.

    Raises:
        ContractError: naming every difference that matters.
    """
    if target.contract is None:
        return
    mismatches = [one for one in compare(target.contract, relation) if one.blocking]
    if mismatches:
        raise ContractError(
            f"{target.name}.{target.table}: the contract and {plan.source.domain}.{plan.source.name} differ: "
            + "; ".join(str(one) for one in mismatches),
            hint="its changes are kept in the parking log and land once contract and source agree again",
        )


@dataclass(frozen=True)
class Promises:
    """What the products of a plan promise of their rows, ready to be held.

    Attributes:
        rulesets: the quality rules of each product whose contract and suites are right.
        refused_tables: tables that take nothing under their contract as it is, and why.
        messages: what was done about old versions of them.
    """

    rulesets: Mapping[ProductName, Ruleset] = field(default_factory=dict)
    refused_tables: Mapping[tuple[ProductName, str], MeshError] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    @property
    def refused(self) -> dict[ProductName, MeshError]:
        """Products of which at least one table takes nothing, and the first reason."""
        return {name: error for (name, _), error in reversed([*self.refused_tables.items()])}

    def refusal(self, target: Target) -> MeshError | None:
        """Why a table takes nothing; None if it does."""
        return self.refused_tables.get((target.name, target.table))

    def gate(self, target: Target) -> Gate | None:
        """The blocking row rules of a table; None if it has none."""
        ruleset = self.rulesets.get(target.name)
        if ruleset is None:
            return None
        rules = [rule for rule in ruleset.for_table(target.table).blocking if rule.scope is Scope.ROW]
        return Gate(rules, target.key) if rules else None


def promises(
    layout: Layout,
    definitions: Mapping[ProductName, Product],
    readers: Mapping[ProductName, compatibility.Readers] | None = None,
    *,
    keep: bool = True,
) -> Promises:
    """Read the quality rules of products, and hold their contracts against those last released.

    An old version that somebody reads is kept beside the new one, or the new one refused.

    Args:
        layout: of the lake.
        definitions: the products.
        readers: per product, who reads what of it; they are named where a contract is refused.
        keep: whether old versions that are read are to be kept.
    """
    rulesets: dict[ProductName, Ruleset] = {}
    refused: dict[tuple[ProductName, str], MeshError] = {}
    messages: list[str] = []
    for name, product in definitions.items():
        try:
            found: Mapping[str, MeshError] = check_release(
                layout, product.contract, (readers or {}).get(name, {})
            )
            rulesets[name] = load(product)
            if keep and not found:
                messages += keep_old_versions(layout, product)
        except MeshError as error:
            found = {table.name: error for table in product.contract.tables}
        refused |= {(name, table): error for table, error in found.items()}
    return Promises(rulesets, refused, tuple(messages))

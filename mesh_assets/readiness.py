"""What must hold before a source's tables are captured; what is wrong with one does not stop the others."""

from __future__ import annotations

from dataclasses import replace

from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.source import Source
from mesh_assets.contract.arrow import compare
from mesh_assets.errors import (
    ContractError,
    CredentialsRejected,
    IdentityMissing,
    MeshError,
    SourceNotReady,
    TableRefused,
    UnknownName,
)
from mesh_assets.plan import CapturePlan, Target

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

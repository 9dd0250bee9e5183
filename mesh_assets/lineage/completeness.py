"""Is every Delta commit of a product explained by exactly one lineage run?

A commit says itself which run made it, and the runs' events list the versions they made. It is
explained if both lead to the same run and to no other; a commit that a crash kept from being
listed is explained by what it says, once its run is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from mesh_assets.lake.signature import Signature, signatures
from mesh_assets.lineage.reconcile import OVER, versions_of
from mesh_assets.lineage.store import read
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName, lake_dataset


@dataclass(frozen=True)
class CommitLineage:
    """What is known of one commit.

    Attributes:
        uri: the table's.
        version: the Delta version.
        made_at: when.
        made_by: the run it names itself; empty if it names none.
        listed_by: the runs whose events list it.
    """

    uri: str
    version: int
    made_at: datetime
    made_by: str
    listed_by: tuple[str, ...]

    def sentence(self) -> str:
        """The commit and what is wrong with it."""
        place = f"version {self.version} of {self.uri}"
        runs = sorted({*self.listed_by, *([self.made_by] if self.made_by else [])})
        if len(runs) > 1:
            return f"{place} is explained by {len(runs)} runs: {', '.join(runs)}"
        if not runs:
            return f"{place} names no run and none lists it: another program made it, or an older one"
        return f"{place} names run {runs[0]}, of which nothing else is known"


@dataclass(frozen=True)
class Explanation:
    """How far the commits of a product are explained.

    Attributes:
        commit_count: commits looked at.
        unexplained: those that no known run made.
        ambiguous: those that several runs claim.
        pending: those of runs still under way that have not told of them yet.
        unlisted: explained by what they say themselves only, because their run died.
    """

    commit_count: int
    unexplained: tuple[CommitLineage, ...]
    ambiguous: tuple[CommitLineage, ...]
    pending: tuple[CommitLineage, ...]
    unlisted: tuple[CommitLineage, ...]

    @property
    def complete(self) -> bool:
        """Whether exactly one run explains each commit."""
        return not (self.unexplained or self.ambiguous)

    def sentence(self) -> str:
        """The answer in one line."""
        explained = self.commit_count - len(self.unexplained) - len(self.ambiguous)
        text = f"{explained:,} of {self.commit_count:,} commits are explained by exactly one run"
        return text + (f", {len(self.pending):,} of them by one under way" if self.pending else "")


def explain(
    layout: Layout,
    name: ProductName,
    tables: Iterable[str],
    *,
    after: Mapping[str, int] | None = None,
    since: datetime | None = None,
) -> Explanation:
    """Look for the run of every commit to change logs, current tables and version log of a product.

    Args:
        layout: of the lake.
        name: the product.
        tables: its tables.
        after: by the URI of a table, the Delta version up to which it was looked at before.
        since: only commits made at or after this moment.
    """
    uris = [layout.table(name, kind, table) for table in tables for kind in (CHANGES, CURRENT)]
    uris.append(layout.versions(name))
    # The commits first: events of theirs that come meanwhile do no harm.
    made = {uri: list(signatures(uri, after=(after or {}).get(uri, -1), since=since)) for uri in uris}
    runs = _Runs.read(layout.lineage(), uris)
    found: dict[str, list[CommitLineage]] = {
        kind: [] for kind in ("unexplained", "ambiguous", "pending", "unlisted", "")
    }
    count = 0
    for uri, signed in made.items():
        listed = runs.listed.get(lake_dataset(uri), {})
        for one in signed:
            count += 1
            commit = CommitLineage(
                uri, one.version, one.made_at, one.run_id, tuple(sorted(listed.get(one.version, ())))
            )
            found[runs.kind(commit, one)].append(commit)
    return Explanation(
        count,
        tuple(found["unexplained"]),
        tuple(found["ambiguous"]),
        tuple(found["pending"]),
        tuple(found["unlisted"]),
    )


@dataclass(frozen=True)
class _Runs:
    """What the events say.

    Attributes:
        known: all runs that have an event.
        over: those that have ended.
        listed: by table and Delta version, the runs whose events list it.
    """

    known: frozenset[str]
    over: frozenset[str]
    listed: Mapping[tuple[str, str], Mapping[int, set[str]]]

    @classmethod
    def read(cls, uri: str, tables: Iterable[str]) -> _Runs:
        names = {lake_dataset(table) for table in tables}
        events = read(uri)
        states = events.select("run_id", "event_type").collect()
        over = states.filter(pl.col("event_type").is_in(OVER))
        wanted = pl.col("outputs").list.eval(pl.element().struct.field("name").is_in([n for _, n in names]))
        listed: dict[tuple[str, str], dict[int, set[str]]] = {}
        about = events.filter(wanted.list.any()).select("run_id", "event")
        for run_id, text in about.collect(engine="streaming").iter_rows():
            for dataset in json.loads(text).get("outputs") or []:
                table = (str(dataset["namespace"]), str(dataset["name"]))
                if table not in names:
                    continue
                versions = listed.setdefault(table, {})
                for version in versions_of(dataset):
                    versions.setdefault(version, set()).add(run_id)
        return cls(frozenset(states.get_column("run_id")), frozenset(over.get_column("run_id")), listed)

    def kind(self, commit: CommitLineage, signature: Signature) -> str:
        """Where a commit belongs; empty if all is well."""
        claims = set(commit.listed_by)
        if commit.made_by:
            claims.add(commit.made_by)
        if len(claims) > 1:
            return "ambiguous"
        if commit.listed_by:
            return ""
        if commit.made_by in self.known:
            return "unlisted" if commit.made_by in self.over else "pending"
        # Short runs tell all of it at their end; the one above them is still there.
        if signature.parent in self.known and signature.parent not in self.over:
            return "pending"
        return "unexplained"

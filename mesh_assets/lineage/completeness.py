"""Is every Delta commit of a product explained by exactly one lineage run?

A commit says itself which run made it, and the runs' events list the versions they made. It is
explained if both lead to the same run and to no other; a commit that a crash kept from being
listed is explained by what it says, once its run is known.

What was proved need not be read again. A commit is listed by no event that happened before it, so
those since the oldest commit that is still open, and since the last look, decide everything; of an
older run that made a commit and has not told of it, only that run's own events are looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import polars as pl

from mesh_assets.lake.signature import Signature, signatures
from mesh_assets.lake.storage import storage_of
from mesh_assets.lake.version import VersionLog
from mesh_assets.lineage.reconcile import Emitter, recover_untold, versions_of
from mesh_assets.lineage.store import FLUSH_SECONDS, OVER, read
from mesh_assets.names import CHANGES, CURRENT, Layout, ProductName, lake_dataset

_CLOCKS = timedelta(minutes=1)
"""How far the clocks of two hosts may be apart."""
_TELLING = timedelta(seconds=3 * FLUSH_SECONDS)
"""How long a run may take to be told after it has committed, whatever became of the one above it."""
_BESIDE = ("checks", "statistics")
"""Tables in a product's catalog: outcomes of its checks, statistics of its columns."""
_KEPT = "explained.json"
"""Where a product's catalog keeps how far its commits are proved; looked at from the start without it."""


@dataclass(frozen=True)
class Mark:
    """The last commit of a table up to which each is explained by exactly one run."""

    version: int
    made_at: datetime


@dataclass(frozen=True)
class Proof:
    """What a look has proved, from which the next one goes on.

    Attributes:
        looked_at: all events that happened before were looked at.
        marks: how far, by the URI of a table.
    """

    looked_at: datetime
    marks: Mapping[str, Mark]

    def to_json(self) -> str:
        """As JSON, from which :meth:`from_json` builds the same again."""
        marks = {uri: [mark.version, mark.made_at.isoformat()] for uri, mark in self.marks.items()}
        return json.dumps({"looked_at": self.looked_at.isoformat(), "marks": marks})

    @classmethod
    def from_json(cls, text: str | bytes) -> Proof:
        """Back from :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is none.
        """
        content = json.loads(text)
        marks = {
            str(uri): Mark(int(version), datetime.fromisoformat(made_at))
            for uri, (version, made_at) in dict(content["marks"]).items()
        }
        return cls(datetime.fromisoformat(content["looked_at"]), marks)


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

    @property
    def claims(self) -> frozenset[str]:
        """Every run that says it made it, or that it says made it."""
        return frozenset((*self.listed_by, self.made_by)) - {""}

    def sentence(self) -> str:
        """The commit and what is wrong with it."""
        place = f"version {self.version} of {self.uri}"
        runs = sorted(self.claims)
        if len(runs) > 1:
            return f"{place} is explained by {len(runs)} runs: {', '.join(runs)}"
        if not runs:
            return f"{place} names no run and none lists it: another program made it, or an older one"
        return f"{place} names run {runs[0]}, of which nothing else is known"


@dataclass(frozen=True)
class Explanation:
    """How far the commits of a product are explained.

    Attributes:
        commit_count: commits looked at; those proved before are not among them.
        unexplained: those that no known run made.
        ambiguous: those that several runs claim.
        pending: those of runs still under way that have not told of them yet.
        unlisted: explained by what they say themselves only, because their run died.
        proof: from which a later look can go on.
    """

    commit_count: int
    unexplained: tuple[CommitLineage, ...]
    ambiguous: tuple[CommitLineage, ...]
    pending: tuple[CommitLineage, ...]
    unlisted: tuple[CommitLineage, ...]
    proof: Proof

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
    proof: Proof | None = None,
    since: datetime | None = None,
) -> Explanation:
    """Look for the run of every commit to a product's tables, version log, checks and statistics.

    Args:
        layout: of the lake.
        name: the product.
        tables: its tables.
        proof: of an earlier look, to go on from there; of what it has proved, only commits that later
            events list are looked at again, lest a second run claims them.
        since: only commits made at or after this moment.
    """
    looked_at = datetime.now(UTC)
    last = VersionLog(layout.versions(name)).latest()
    uris = [
        layout.table(name, kind, table, generation)
        for table in tables
        for generation in range(1, (last.generation(table) if last else 1) + 1)
        for kind in (CHANGES, CURRENT)
    ]
    uris += [layout.versions(name), *(layout.catalog(name, part) for part in _BESIDE)]
    marks = {uri: mark for uri, mark in (proof.marks if proof else {}).items() if _stands(uri, mark)}
    # The commits first: events of theirs that come meanwhile do no harm.
    made = {
        uri: list(signatures(uri, after=marks[uri].version if uri in marks else -1, since=since))
        for uri in uris
    }
    moments = [one.made_at for signed in made.values() for one in signed]
    moments += [proof.looked_at] if proof and marks else []
    oldest = min(moments, default=looked_at) - _CLOCKS
    runs = _Runs.read(layout.lineage(), uris, oldest).with_makers(layout.lineage(), made)
    found: dict[str, list[CommitLineage]] = {
        kind: [] for kind in ("unexplained", "ambiguous", "pending", "unlisted", "")
    }
    for uri, signed in made.items():
        mark, going_on = marks.pop(uri, None), True
        listed = runs.listed.get(lake_dataset(uri), {})
        again = _listed_again(uri, listed, mark, since)
        for one in signed:
            commit = _commit(uri, one, listed)
            kind = runs.kind(commit, one, looked_at)
            found[kind].append(commit)
            going_on = going_on and kind in ("", "unlisted")
            mark = Mark(one.version, one.made_at) if going_on else mark
        disproved = [commit for one in again if len((commit := _commit(uri, one, listed)).claims) > 1]
        found["ambiguous"] += disproved
        if mark is not None and not disproved:
            marks[uri] = mark
    return Explanation(
        sum(map(len, found.values())),
        tuple(found["unexplained"]),
        tuple(found["ambiguous"]),
        tuple(found["pending"]),
        tuple(found["unlisted"]),
        Proof(looked_at, marks),
    )


def explain_further(
    layout: Layout,
    name: ProductName,
    tables: Iterable[str],
    *,
    since: datetime | None = None,
    emitter: Emitter | None = None,
) -> Explanation:
    """:func:`explain` what the last call has not proved, which is kept in the product's catalog.

    Args:
        layout: of the lake.
        name: the product.
        tables: its tables.
        since: only commits made at or after this moment.
        emitter: takes the events of runs that committed but died before they told anything, if those
            are to be told first.
    """
    tables = list(tables)
    storage = storage_of(layout.catalog(name))
    try:
        proof = Proof.from_json(storage.read(_KEPT))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        proof = None
    found = explain(layout, name, tables, proof=proof, since=since)
    if emitter is not None and found.unexplained:
        uris = {one.uri for one in found.unexplained}
        oldest = min(one.made_at for one in found.unexplained)
        if recover_untold(layout.lineage(), emitter, sorted(uris), since=oldest):
            found = explain(layout, name, tables, proof=proof, since=since)
    storage.write(_KEPT, found.proof.to_json().encode())
    return found


def _stands(uri: str, mark: Mark) -> bool:
    """Whether the commit that was marked is still there: the table may have been made anew."""
    marked = next(signatures(uri, after=mark.version - 1), None)
    return marked is not None and (marked.version, marked.made_at) == (mark.version, mark.made_at)


def _listed_again(
    uri: str, listed: Mapping[int, set[str]], mark: Mark | None, since: datetime | None
) -> list[Signature]:
    """The proved commits that events list which were not looked at then."""
    versions = {version for version in listed if mark is not None and version <= mark.version}
    if not versions:
        return []
    signed = signatures(uri, after=min(versions) - 1, since=since)
    upto = takewhile(lambda one: one.version <= max(versions), signed)
    return [one for one in upto if one.version in versions]


def _commit(uri: str, signature: Signature, listed: Mapping[int, set[str]]) -> CommitLineage:
    listed_by = tuple(sorted(listed.get(signature.version, ())))
    return CommitLineage(uri, signature.version, signature.made_at, signature.run_id, listed_by)


@dataclass(frozen=True)
class _Runs:
    """What the events say.

    Attributes:
        known: the runs that have an event.
        over: those that have ended.
        listed: by table and Delta version, the runs whose events list it.
    """

    known: frozenset[str]
    over: frozenset[str]
    listed: Mapping[tuple[str, str], Mapping[int, set[str]]]

    @classmethod
    def read(cls, uri: str, tables: Iterable[str], since: datetime) -> _Runs:
        """What the events since then say of the tables."""
        names = {lake_dataset(table) for table in tables}
        events = read(uri, since=since)
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
        return cls(*_known(events), listed)

    def with_makers(self, uri: str, made: Mapping[str, Iterable[Signature]]) -> _Runs:
        """With older runs that made a commit, or are above one that did, but have not told of it."""
        asked = {
            run_id
            for table, signed in made.items()
            for one in signed
            if one.version not in self.listed.get(lake_dataset(table), {})
            for run_id in (one.run_id, one.parent)
            if run_id and run_id not in self.known
        }
        states = [_known(read(uri, run_id=run_id)) for run_id in sorted(asked)]
        return replace(
            self,
            known=self.known.union(*(known for known, _ in states)),
            over=self.over.union(*(over for _, over in states)),
        )

    def kind(self, commit: CommitLineage, signature: Signature, looked_at: datetime) -> str:
        """Where a commit belongs; empty if all is well."""
        if len(commit.claims) > 1:
            return "ambiguous"
        if commit.listed_by:
            return ""
        if commit.made_by in self.known:
            return "unlisted" if commit.made_by in self.over else "pending"
        # Short runs tell all of it at their end; the one above them is still there, or ended just before.
        if signature.parent in self.known and signature.parent not in self.over:
            return "pending"
        if commit.made_by and looked_at - commit.made_at < _TELLING:
            return "pending"
        return "unexplained"


def _known(events: pl.LazyFrame) -> tuple[frozenset[str], frozenset[str]]:
    """The runs that have an event, and those that have ended."""
    states = events.select("run_id", "event_type").collect()
    over = states.filter(pl.col("event_type").is_in(OVER))
    return frozenset(states.get_column("run_id")), frozenset(over.get_column("run_id"))

"""The sensor of a domain: starts a capture shift where a source has changes that were not captured.

A tick asks each source for the counters of its published tables and for its replication slot, which
confirms only what the ledger holds. The cursor remembers at which WAL position the counters were
first seen as they are: everything they count was committed before it. So a source is captured once
its slot has confirmed that position, and an idle source starts no run however much WAL other
databases write. The cursor is a hint: without it one short shift is started too many.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mesh_assets.contract.discovery import Product
from mesh_assets.errors import MeshError
from mesh_assets.names import CURRENT, ProductName
from mesh_assets.orchestration.asset import asset_key, fingerprint, freshness_window
from mesh_assets.orchestration.check import LOADS, loads_result
from mesh_assets.orchestration.head import Head, HeadReader, source_config
from mesh_assets.orchestration.shift import ACTIVE, SHIFT_TAG, job_name, shift_tag
from mesh_assets.settings import Settings

TICK_SECONDS = 5
HEAD_TIMEOUT_SECONDS = 3

_UNCOUNTED_SECONDS = 600.0
_RETAINED_BYTES = 64 << 20
_RELIEF_SECONDS = 30.0
_RELIEF_SHARE = 0.5
_HEARTBEATS_PER_WINDOW = 3

_reader = HeadReader(HEAD_TIMEOUT_SECONDS)


@dataclass
class Seen:
    """What the sensor remembers of one source.

    Attributes:
        changes: the counters of its published tables.
        lsn: WAL position at which they were first seen; everything they count is before it.
        shift_at: when a shift was last seen or started, seconds since 1970.
    """

    changes: int = -1
    lsn: int = 0
    shift_at: float = 0.0


@dataclass
class Cursor:
    """What the sensor remembers from tick to tick.

    Attributes:
        sources: by name.
        reported: when an idle product was last reported as fresh, seconds since 1970, by asset key.
        broken: the mistakes that were last reported.
    """

    sources: dict[str, Seen] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)
    broken: str = ""

    @classmethod
    def load(cls, text: str | None) -> Cursor:
        """Read what :meth:`dump` wrote; anything else is an empty cursor."""
        try:
            found = json.loads(text or "{}")
            return cls(
                {name: Seen(**seen) for name, seen in found.get("sources", {}).items()},
                dict(found.get("reported", {})),
                str(found.get("broken", "")),
            )
        except (ValueError, TypeError, AttributeError):
            return cls()

    def dump(self) -> str:
        """The cursor as text."""
        return json.dumps(asdict(self))


def due(head: Head, seen: Seen, now: float) -> str | None:
    """Why a source without a running shift needs one, or None. Updates ``seen``."""
    if head.changes != seen.changes:
        seen.changes, seen.lsn = head.changes, head.wal_lsn
    if head.confirmed_lsn is None:
        return "it was never captured"
    if head.wal_status == "lost":
        return "its replication slot was lost"
    if head.confirmed_lsn < seen.lsn:
        return "it has new changes"
    if head.retained_bytes > _RETAINED_BYTES:
        return f"it retains {head.retained_bytes >> 20} MiB of WAL"
    # Counters know nothing of TRUNCATE, and a crash of the server resets them.
    if now - seen.shift_at > _UNCOUNTED_SECONDS:
        return f"no shift for {_UNCOUNTED_SECONDS / 60:.0f} minutes"
    return None


def _relief_after_seconds(shift_seconds: float) -> float:
    """When a shift's successor is queued: some ticks before its time is over."""
    return shift_seconds - min(_RELIEF_SECONDS, shift_seconds * _RELIEF_SHARE)


def domain_sensor(
    domain: str,
    products: Sequence[Product],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    broken: Mapping[ProductName, MeshError],
) -> dg.SensorDefinition:
    """The domain's only sensor, running unless switched off in the UI."""
    tables = _tables_by_source(products)

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return Tick(context, domain, products, tables, broken).result()

    return dg.SensorDefinition(
        name=f"{domain}_capture",
        evaluation_fn=evaluate,
        jobs=list(jobs) or None,
        target=None if jobs else dg.AssetSelection.all(),
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"Starts a capture shift for a source of {domain} that has new changes: at most one per source "
            "at a time, and the next one before a busy shift's time is over. An idle source starts no run."
        ),
    )


def _tables_by_source(products: Sequence[Product]) -> dict[str, tuple[str, ...]]:
    tables: dict[str, list[str]] = {}
    for product in products:
        tables.setdefault(product.definition.source, []).extend(
            table.physical_name for table in product.contract.tables
        )
    return {source: tuple(names) for source, names in tables.items()}


class Tick:
    """One evaluation of a domain's sensor."""

    def __init__(
        self,
        context: dg.SensorEvaluationContext,
        domain: str,
        products: Sequence[Product],
        tables: Mapping[str, tuple[str, ...]],
        broken: Mapping[ProductName, MeshError],
    ) -> None:
        self._context = context
        self._domain = domain
        self._products = products
        self._tables = tables
        self._broken = broken
        self._settings = Settings()
        self._now = datetime.now(UTC).timestamp()
        self._cursor = Cursor.load(context.cursor)
        self._idle: set[str] = set()
        self._notes: list[str] = []

    def result(self) -> dg.SensorResult:
        """What to start and to report."""
        requests = list(self._requests())
        events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = [*self._broken_events()]
        events += self._heartbeats()
        skip = None if requests else dg.SkipReason("; ".join(self._notes) or "no source")
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=skip,
            asset_events=events,
            cursor=self._cursor.dump(),
        )

    def _requests(self) -> Iterator[dg.RunRequest]:
        heads = self._heads()
        active = self._runs(ACTIVE)
        queued = self._runs([dg.DagsterRunStatus.QUEUED])
        for source in self._tables:
            name = f"{self._domain}.{source}"
            seen = self._cursor.sources.setdefault(source, Seen())
            head = heads[source]
            reason: str | None = None
            if name in queued:
                self._notes.append(f"{source}: a shift is queued")
            elif name in active:
                seen.shift_at = self._now
                if isinstance(head, Head):
                    due(head, seen, self._now)
                if self._now - active[name] < _relief_after_seconds(self._settings.shift_seconds):
                    self._notes.append(f"{source}: a shift runs")
                else:
                    reason = "the running shift's time is nearly over"
            elif isinstance(head, Head):
                reason = due(head, seen, self._now)
                if reason is not None and head.active:
                    # Its run would only wait for the other's end.
                    reason = None
                    self._notes.append(f"{source}: another process drains it")
                elif reason is None:
                    self._idle.add(source)
                    self._notes.append(f"{source}: nothing new")
            else:
                # The run that fails on it says so, but once in ten minutes is enough.
                self._notes.append(f"{source}: {head}")
                if self._now - seen.shift_at > _UNCOUNTED_SECONDS:
                    reason = "it cannot be reached"
            if reason is not None:
                seen.shift_at = self._now
                self._context.log.info(f"shift for {name}: {reason}")
                yield dg.RunRequest(
                    job_name=job_name(self._domain, source),
                    tags={**shift_tag(self._domain, source), "mesh/reason": reason},
                )

    def _heads(self) -> dict[str, Head | MeshError]:
        """The heads of all sources, asked at the same time."""
        heads: dict[str, Head | MeshError] = {}
        asked = {}
        for source, tables in self._tables.items():
            try:
                config = source_config(self._settings, self._domain, source, tables)
            except MeshError as error:
                heads[source] = error
            else:
                asked[source] = config, _reader.read(config)
        for source, (config, future) in asked.items():
            heads[source] = _reader.answer(config, future)
        return heads

    def _runs(self, statuses: Sequence[dg.DagsterRunStatus]) -> dict[str, float]:
        """Source -> when its oldest run in one of the statuses began (or was made)."""
        records = self._context.instance.get_run_records(
            dg.RunsFilter(
                tags={SHIFT_TAG: [f"{self._domain}.{name}" for name in self._tables]}, statuses=list(statuses)
            )
        )
        begun: dict[str, float] = {}
        for record in records:
            name = record.dagster_run.tags[SHIFT_TAG]
            at = record.start_time or record.create_timestamp.timestamp()
            begun[name] = min(at, begun.get(name, at))
        return begun

    def _broken_events(self) -> Iterator[dg.AssetCheckEvaluation]:
        """Report products that could not be loaded, once per mistake."""
        text = "\n".join(f"{name}: {error}" for name, error in sorted(self._broken.items()))
        digest = fingerprint(text) if text else ""
        if digest == self._cursor.broken:
            return
        self._cursor.broken = digest
        for name, error in self._broken.items():
            outcome = loads_result(error)
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey([name.domain, name.product]),
                check_name=LOADS,
                passed=False,
                metadata=outcome.metadata,
            )

    def _heartbeats(self) -> Iterator[dg.AssetMaterialization]:
        """Say of idle products that they are fresh: Dagster judges the age of the last report."""
        for product in self._products:
            window = freshness_window(product)
            if window is None or product.definition.source not in self._idle:
                continue
            interval = window.total_seconds() / _HEARTBEATS_PER_WINDOW
            for table in product.contract.tables:
                key = asset_key(product.name, CURRENT, table.name)
                name = key.to_user_string()
                if self._now - self._cursor.reported.get(name, 0.0) < interval:
                    continue
                self._cursor.reported[name] = self._now
                event = self._context.instance.get_latest_materialization_event(key)
                last = event.asset_materialization if event else None
                if event is None or last is None or self._now - event.timestamp < interval:
                    continue
                yield dg.AssetMaterialization(
                    asset_key=key,
                    description="Nothing new at the source: fresh as it is.",
                    metadata=last.metadata,
                    tags=last.tags,
                )

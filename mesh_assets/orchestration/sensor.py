"""The sensor of a domain: starts a shift where something is new that was not captured or derived.

A tick asks each source for the counters of its published tables and for its replication slot, which
confirms only what the ledger holds. The cursor remembers at which WAL position the counters were
first seen as they are: everything they count was committed before it. So a source is captured once
its slot has confirmed that position, and an idle source starts no run however much WAL other
databases write. The cursor is a hint: without it one short shift is started too many.

The derived products of the domain have one shift together. It is started when one of their inputs, of
whatever domain, has a version that no derive shift has looked at, and already when changes are being
captured that will make one, so that it is warm when they have landed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import takewhile

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from mesh_assets.contract.discovery import Discovery, Product
from mesh_assets.errors import MeshError
from mesh_assets.names import CURRENT, Layout, ProductName
from mesh_assets.orchestration import derive
from mesh_assets.orchestration.asset import asset_key, fingerprint, freshness_window
from mesh_assets.orchestration.check import LOADS, loads_result
from mesh_assets.orchestration.head import Head, HeadReader, source_config
from mesh_assets.orchestration.relay import ACTIVE, turn_seconds
from mesh_assets.orchestration.shift import SHIFT_TAG, job_name, shift_tag
from mesh_assets.orchestration.subscription import SEEN_TAG, Past, input_products, root_sources
from mesh_assets.orchestration.subscription import due as derive_due
from mesh_assets.orchestration.version import newest_versions
from mesh_assets.settings import Settings

TICK_SECONDS = 3
HEAD_TIMEOUT_SECONDS = 3

_UNCOUNTED_SECONDS = 600.0
_RETAINED_BYTES = 64 << 20
_RELIEF_SECONDS = 30.0
_RELIEF_SHARE = 0.5
_HEARTBEATS_PER_WINDOW = 3
_PAST_RUNS = 8
_REASON_TAG = "mesh/reason"
_NO_NEWS = "no shift for"

_reader = HeadReader(HEAD_TIMEOUT_SECONDS)


@dataclass
class Seen:
    """What the sensor remembers of one source.

    Attributes:
        changes: the counters of its published tables.
        lsn: WAL position at which they were first seen; everything they count is before it.
        shift_at: when a shift was last seen or started, seconds since 1970.
        contracts: those under which the last shift was started, as a fingerprint.
    """

    changes: int = -1
    lsn: int = 0
    shift_at: float = 0.0
    contracts: str = ""


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


def due(head: Head, seen: Seen, now: float, contracts: str = "") -> str | None:
    """Why a source without a running shift needs one, or None. Updates ``seen``.

    Args:
        head: where the source stands.
        seen: what is remembered of it.
        now: seconds since 1970.
        contracts: fingerprint of those that its products have now.
    """
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
    if contracts != seen.contracts:
        # Who reads what a new one takes back waits until a shift has kept the old version.
        return "its contracts have changed"
    # Counters know nothing of TRUNCATE, and a crash of the server resets them.
    if now - seen.shift_at > _UNCOUNTED_SECONDS:
        return f"{_NO_NEWS} {_UNCOUNTED_SECONDS / 60:.0f} minutes"
    return None


def abandoned(source: str, head: Head | MeshError) -> str:
    """What to say of a source without a product that can be loaded; nothing if no slot of it is left."""
    if isinstance(head, MeshError):
        return f"{source}: {head}"
    if head.confirmed_lsn is None:
        return ""
    return (
        f"{source}: no product of it can be loaded, so no shift captures it: its replication slot keeps "
        f"{head.retained_bytes >> 20:,} MiB of WAL, and more with every change"
    )


def _relief_after_seconds(shift_seconds: float, name: str) -> float:
    """When a shift's successor is started: long enough before its time is over to be ready by then."""
    seconds = turn_seconds(shift_seconds, name)
    return seconds - min(_RELIEF_SECONDS, seconds * _RELIEF_SHARE)


def domain_sensor(
    domain: str,
    products: Sequence[Product],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    broken: Mapping[ProductName, MeshError],
    discovery: Discovery,
) -> dg.SensorDefinition:
    """The domain's only sensor, running unless switched off in the UI."""
    scope = Scope.of(domain, products, discovery)

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return Tick(context, scope, broken).result()

    return dg.SensorDefinition(
        name=f"{domain}_capture",
        evaluation_fn=evaluate,
        jobs=list(jobs) or None,
        target=None if jobs else dg.AssetSelection.all(),
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"Starts a capture shift for a source of {domain} that has new changes, and a derive shift when "
            "products that its own are made of have new versions: at most one per source and one to derive "
            "at a time, and the next one before a busy shift's time is over. An idle domain starts no run."
        ),
    )


def _tables_by_source(products: Sequence[Product]) -> dict[str, tuple[str, ...]]:
    tables: dict[str, list[str]] = {}
    for product in products:
        if product.definition.source is not None:
            tables.setdefault(product.definition.source, []).extend(
                table.physical_name for table in product.contract.tables
            )
    return {source: tuple(names) for source, names in tables.items()}


def _begun(
    records: Sequence[dg.RunRecord], statuses: Sequence[dg.DagsterRunStatus], tag: str = SHIFT_TAG
) -> dict[str, float]:
    """Value of the tag -> when its oldest run in one of the statuses began (or was made)."""
    begun: dict[str, float] = {}
    for record in records:
        if record.dagster_run.status in statuses:
            name = record.dagster_run.tags[tag]
            at = record.start_time or record.create_timestamp.timestamp()
            begun[name] = min(at, begun.get(name, at))
    return begun


def _past(records: Sequence[dg.RunRecord]) -> Past:
    """What the derive shifts that have ended, newest first, have left."""
    texts = [text for record in records if (text := record.dagster_run.tags.get(SEEN_TAG))]
    seen = texts[0] if texts else ""
    attempts = sum(1 for _ in takewhile(lambda text: text == seen, texts))
    last = records[0] if records else None
    failed = last is not None and last.dagster_run.status == dg.DagsterRunStatus.FAILURE
    ended_at = (last.end_time or last.create_timestamp.timestamp()) if last is not None else 0.0
    return Past(seen, last.end_time if last is not None and failed else None, ended_at, max(1, attempts))


@dataclass(frozen=True)
class Scope:
    """What a domain's sensor looks after.

    Attributes:
        products: captured and derived ones.
        tables: source -> its tables that are captured.
        derived: the derived products, each after those that it is made of.
        inputs: what they are made of, as far as it is not among them.
        roots: the sources, as ``domain.source``, that all of this is captured from.
        abandoned: sources of the domain of which no product can be loaded.
    """

    domain: str
    products: Sequence[Product]
    tables: Mapping[str, tuple[str, ...]]
    derived: Sequence[Product] = ()
    inputs: Sequence[Product] = ()
    roots: Sequence[str] = ()
    abandoned: Sequence[str] = ()

    @classmethod
    def of(cls, domain: str, products: Sequence[Product], discovery: Discovery) -> Scope:
        """The scope of a domain with the products that it could load."""
        loaded = {product.name for product in products}
        derived = [product for product in discovery.derived(domain) if product.name in loaded]
        tables = _tables_by_source(products)
        known = discovery.domains[domain].sources if domain in discovery.domains else {}
        return cls(
            domain,
            products,
            tables,
            derived,
            input_products(derived, discovery),
            root_sources(derived, discovery),
            [source for source in known if source not in tables],
        )


class Tick:
    """One evaluation of a domain's sensor."""

    def __init__(
        self, context: dg.SensorEvaluationContext, scope: Scope, broken: Mapping[ProductName, MeshError]
    ) -> None:
        self._context = context
        self._scope = scope
        self._domain = scope.domain
        self._products = scope.products
        self._tables = scope.tables
        self._broken = broken
        self._settings = Settings()
        self._now = datetime.now(UTC).timestamp()
        self._cursor = Cursor.load(context.cursor)
        self._idle: set[str] = set()
        self._derived_idle = False
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
        shifts = self._shifts()
        active = _begun(shifts, ACTIVE)
        queued = _begun(shifts, [dg.DagsterRunStatus.QUEUED])
        counts = Counter(
            one.dagster_run.tags[SHIFT_TAG] for one in shifts if one.dagster_run.status in ACTIVE
        )
        for source in self._tables:
            name = f"{self._domain}.{source}"
            seen = self._cursor.sources.setdefault(source, Seen())
            head = heads[source]
            contracts = self._contracts(source)
            reason: str | None = None
            if name in queued:
                self._notes.append(f"{source}: a shift is queued")
            elif name in active:
                seen.shift_at = self._now
                if isinstance(head, Head):
                    due(head, seen, self._now)
                if counts[name] > 1:
                    self._notes.append(f"{source}: a shift runs, the next one waits for its turn")
                elif self._now - active[name] < _relief_after_seconds(self._settings.shift_seconds, name):
                    self._notes.append(f"{source}: a shift runs")
                else:
                    reason = "the running shift's time is nearly over"
            elif isinstance(head, Head):
                reason = due(head, seen, self._now, contracts)
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
                seen.shift_at, seen.contracts = self._now, contracts
                self._context.log.info(f"shift for {name}: {reason}")
                yield dg.RunRequest(
                    job_name=job_name(self._domain, source),
                    tags={**shift_tag(self._domain, source), _REASON_TAG: reason},
                )
        self._look_at_abandoned()
        if self._scope.derived:
            yield from self._derive_requests(shifts)

    def _contracts(self, source: str) -> str:
        """Fingerprint of the contracts of the products that are captured from a source."""
        own = [one.contract for one in self._products if one.definition.source == source]
        return fingerprint("".join(f"{one.name}:{one.hash}\n" for one in own))

    def _look_at_abandoned(self) -> None:
        """Say what WAL is kept for sources that no product captures any more."""
        for source in self._scope.abandoned:
            try:
                config = source_config(self._settings, self._domain, source, ())
            except MeshError:
                # It was never given an address: nothing of it is captured.
                continue
            head = _reader.answer(config, _reader.read(config))
            if text := abandoned(source, head):
                self._notes.append(text)
                if isinstance(head, Head) and head.retained_bytes > _RETAINED_BYTES:
                    self._context.log.warning(text)

    def _derive_requests(self, shifts: Sequence[dg.RunRecord]) -> Iterator[dg.RunRequest]:
        """At most one: the derive shift of the domain."""
        records = self._context.instance.get_run_records(
            dg.RunsFilter(tags=derive.derive_tag(self._domain)), limit=_PAST_RUNS
        )
        statuses = Counter(record.dagster_run.status for record in records)
        reason: str | None = None
        if dg.DagsterRunStatus.QUEUED in statuses:
            self._notes.append("a derive shift is queued")
        elif active := sum(statuses[status] for status in ACTIVE):
            (begun,) = _begun(records, ACTIVE, derive.DERIVE_TAG).values()
            if active > 1:
                self._notes.append("a derive shift runs, the next one waits for its turn")
            elif self._now - begun < _relief_after_seconds(self._settings.shift_seconds, self._domain):
                self._notes.append("a derive shift runs")
            else:
                reason = "the running shift's time is nearly over"
        else:
            layout = Layout(self._settings.lake_root)
            heads = newest_versions(layout, self._scope.inputs, self._context.instance)
            wanted, why = derive_due(
                self._scope.derived, heads, _past(records), self._capturing(shifts), self._now
            )
            if wanted:
                reason = why
            else:
                self._derived_idle = why == "nothing new"
                self._notes.append(f"derived products: {why}")
        if reason is not None:
            self._context.log.info(f"derive shift for {self._domain}: {reason}")
            yield dg.RunRequest(
                job_name=derive.job_name(self._domain),
                tags={**derive.derive_tag(self._domain), _REASON_TAG: reason},
            )

    def _capturing(self, shifts: Sequence[dg.RunRecord]) -> list[str]:
        """Sources of the derived products from which changes are being captured."""
        found = set()
        for record in shifts:
            tags = record.dagster_run.tags
            news = not tags.get(_REASON_TAG, _NO_NEWS).startswith(_NO_NEWS)
            if news and tags[SHIFT_TAG] in self._scope.roots:
                found.add(tags[SHIFT_TAG])
        return sorted(found)

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

    def _shifts(self) -> Sequence[dg.RunRecord]:
        """Capture shifts, running or queued, of the domain's sources and of what its products are made of."""
        names = {*(f"{self._domain}.{name}" for name in self._tables), *self._scope.roots}
        statuses = [*ACTIVE, dg.DagsterRunStatus.QUEUED]
        return self._context.instance.get_run_records(
            dg.RunsFilter(tags={SHIFT_TAG: sorted(names)}, statuses=statuses)
        )

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
            source = product.definition.source
            idle = self._derived_idle if source is None else source in self._idle
            if window is None or not idle:
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
                    description="Nothing new to take in: fresh as it is.",
                    metadata=last.metadata,
                    tags=last.tags,
                )

"""What the mesh looks like from second to second, collected in a process of its own.

The supervisor must not load the Delta Lake library nor start threads, see
:mod:`mesh_assets.local.process`; so this process looks at the sources, the lake and Dagster, and
writes one :class:`Sight` per line into a pipe.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mesh_assets.cdc.source import Source, SourceConfig
from mesh_assets.contract.discovery import Product
from mesh_assets.errors import LakeError, MeshError, TableMissing
from mesh_assets.lake.current import Current
from mesh_assets.lake.version import VersionLog
from mesh_assets.local.sight import ProductSight, Sight, SourceSight
from mesh_assets.names import CURRENT, Layout, ProductName, local_folder
from mesh_assets.orchestration.component import discovered
from mesh_assets.orchestration.head import Head, HeadReader, source_config
from mesh_assets.settings import Settings
from mesh_assets.status import waiting_since

_HEAD_TIMEOUT_SECONDS = 3
_WEB_TIMEOUT_SECONDS = 5
_BUSY_SECONDS = 1.0
_LAKE_SECONDS = 2.0
_DAGSTER_SECONDS = 5.0
_IDLE_FACTOR = 4
# What a derive shift leaves in the product's folder when it could not derive it.
_REFUSAL_FILE = "refused.json"

_QUERY = """
query Look($since: Float!) {
  workspaceOrError { __typename ... on Workspace { locationEntries { name loadStatus
    locationOrLoadError { __typename ... on PythonError { message } } } } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
  failed: runsOrError(filter: {statuses: [FAILURE], createdAfter: $since}, limit: 20) {
    ... on Runs { results { runId jobName } } }
  running: runsOrError(filter: {statuses: [STARTED]}, limit: 50) { ... on Runs { results { runId } } }
}
"""


class Lag:
    """Turns positions into seconds: since when there has been something that is not captured.

    Args:
        waits: whether anything does at the first look: the counters do not tell what was captured before,
            and not all WAL is changes.
    """

    def __init__(self, waits: Callable[[], bool]) -> None:
        self._waits = waits
        self._changes = -1
        self._marks: deque[tuple[int, float]] = deque()
        self._last: tuple[float, int] | None = None
        self.change_rate: float | None = None

    def see(self, head: Head, now: float) -> float | None:
        """The lag at ``now``; None before the first capture."""
        if self._last is not None and now > self._last[0]:
            self.change_rate = max(0, head.changes - self._last[1]) / (now - self._last[0])
        self._last = (now, head.changes)
        first = self._changes < 0
        if head.changes != self._changes:
            self._changes = head.changes
            if not first or head.confirmed_lsn is None or head.active or self._waits():
                self._marks.append((head.wal_lsn, now))
        if head.confirmed_lsn is None:
            return None
        while self._marks and self._marks[0][0] <= head.confirmed_lsn:
            self._marks.popleft()
        return now - self._marks[0][1] if self._marks else 0.0


class Watch:
    """Looks, and writes what it sees.

    Args:
        settings: where everything is.
        web_url: address of Dagster's web server.
        descriptor: where lines go; at its end this process ends.
    """

    def __init__(self, settings: Settings, web_url: str, descriptor: int) -> None:
        self._settings = settings
        self._layout = Layout(settings.lake_root)
        self._web_url = web_url
        self._descriptor = descriptor
        self._since = time.time()
        self._discovery = discovered(settings.products)
        self._reader = HeadReader(_HEAD_TIMEOUT_SECONDS)
        self._lags: dict[str, Lag] = {}
        self._versions: dict[ProductName, VersionLog] = {}
        self._currents: dict[str, Current] = {}
        self._dagster: dict[str, Any] = {}
        self._products: list[ProductSight] = []

    def run(self) -> int:
        """Look once a second, less often while nothing changes, until nobody listens."""
        dagster_due = lake_due = 0.0
        idle = False
        while True:
            now = time.monotonic()
            sources = self._sources()
            if now >= dagster_due:
                self._dagster = self._ask_dagster()
                ready = self._dagster.get("web") and not self._dagster.get("daemons")
                dagster_due = now + (_DAGSTER_SECONDS if ready else _BUSY_SECONDS)
            if now >= lake_due:
                with suppress(MeshError):
                    # Products come and go, old versions that are kept by themselves.
                    self._discovery = discovered(self._settings.products)
                before, self._products = self._products, self._look_at_products()
                idle = before == self._products and all(not one.lag_seconds for one in sources)
                lake_due = now + _LAKE_SECONDS * (_IDLE_FACTOR if idle else 1)
            sight = Sight(at=time.time(), sources=sources, products=self._products, **self._dagster)
            try:
                os.write(self._descriptor, (sight.dump() + "\n").encode())
            except BrokenPipeError:
                return 0
            time.sleep(max(0.05, _BUSY_SECONDS * (2 if idle else 1) - (time.monotonic() - now)))

    # -- sources

    def _sources(self) -> list[SourceSight]:
        asked = []
        sights = {}
        for (domain, source), tables in self._discovery.sources().items():
            name = f"{domain}.{source}"
            try:
                config = source_config(self._settings, domain, source, tables)
            except MeshError as error:
                sights[name] = SourceSight(name, problem=error.message)
            else:
                asked.append((name, config, self._reader.read(config)))
        for name, config, future in asked:
            head = self._reader.answer(config, future)
            # The error is its answer, or that there was none in time.
            overdue = isinstance(head, MeshError) and not (future.done() and future.exception() is head)
            sights[name] = self._source(name, config, head, overdue=overdue)
        return [sights[name] for name in sorted(sights)]

    def _source(
        self, name: str, config: SourceConfig, head: Head | MeshError, *, overdue: bool
    ) -> SourceSight:
        if isinstance(head, MeshError):
            return SourceSight(name, problem=head.message, overdue=overdue)
        lag = self._lags.setdefault(name, Lag(lambda: _waits(config)))
        seconds = lag.see(head, time.monotonic())
        return SourceSight(
            name,
            lag_seconds=seconds,
            retained_bytes=head.retained_bytes,
            change_rate=lag.change_rate,
            captured=head.confirmed_lsn is not None,
            problem="its replication slot was lost" if head.wal_status == "lost" else "",
        )

    # -- products

    def _look_at_products(self) -> list[ProductSight]:
        sights = [self._product(name) for name in self._discovery.products]
        for folder, error in self._discovery.broken:
            name = f"{folder.parent.name}.{folder.name}"
            sights.append(ProductSight(name, problem=error.message.splitlines()[0]))
        return sights

    def _product(self, name: ProductName) -> ProductSight:
        product = self._discovery.products[name]
        definition = product.definition
        origin = f"{name.domain}.{definition.source}"
        if product.derived:
            origin = ", ".join(dict.fromkeys(str(one.product) for one in definition.inputs))
        try:
            return replace(self._standing(product), origin=origin, problem=self._refusal(product))
        except LakeError as error:
            return ProductSight(str(name), problem=error.message, origin=origin)

    def _standing(self, product: Product) -> ProductSight:
        layout, name = self._layout, product.name
        try:
            log = self._versions.get(name)
            if log is None:
                log = self._versions[name] = VersionLog.open(layout.versions(name))
            else:
                log.refresh()
            row = log.latest()
            counts = [
                self._rows(layout.table(name, CURRENT, table.name, row.generation(table.name) if row else 1))
                for table in product.contract.tables
            ]
        except TableMissing:
            return ProductSight(str(name))
        row_count = sum(one for one in counts if one is not None) if None not in counts else None
        if row is None:
            return ProductSight(str(name), row_count)
        return ProductSight(str(name), row_count, row.version, row.committed_at.isoformat())

    def _refusal(self, product: Product) -> str:
        """Why a derived product could not be derived; empty if it could."""
        folder = local_folder(self._layout.product(product.name)) if product.derived else None
        if folder is None:
            return ""
        try:
            error = str(json.loads((folder / _REFUSAL_FILE).read_text())["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return f"not derived: {error.splitlines()[0] if error else 'unknown'}"

    def _rows(self, uri: str) -> int | None:
        """Rows of a current table as last folded; None before the first fold."""
        current = self._currents.get(uri)
        if current is not None:
            current.refresh()
        else:
            try:
                current = self._currents[uri] = Current.open(uri)
            except TableMissing:
                return None
        return current.row_count if current.folded >= 0 else None

    # -- Dagster

    def _ask_dagster(self) -> dict[str, Any]:
        body = json.dumps({"query": _QUERY, "variables": {"since": self._since}}).encode()
        request = urllib.request.Request(
            f"{self._web_url}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_WEB_TIMEOUT_SECONDS) as answer:
                data = json.load(answer)["data"]
        except (OSError, ValueError, KeyError):
            return {"web": False, "locations": {}, "daemons": ("no answer",)}
        return {"web": True, **_dagster_sight(data)}


def _waits(config: SourceConfig) -> bool:
    """Whether a source has something to send; also if that cannot be told."""
    try:
        with Source(config) as source:
            return waiting_since(source) is not None
    except MeshError:
        return True


def _dagster_sight(data: dict[str, Any]) -> dict[str, Any]:
    locations = {}
    for entry in data["workspaceOrError"].get("locationEntries", []):
        outcome = entry["locationOrLoadError"] or {}
        if outcome.get("__typename") == "PythonError":
            locations[entry["name"]] = outcome["message"].strip()
        else:
            locations[entry["name"]] = "loaded" if entry["loadStatus"] == "LOADED" else "loading"
    statuses = data["instance"]["daemonHealth"]["allDaemonStatuses"]
    return {
        "locations": locations,
        "daemons": [one["daemonType"] for one in statuses if one["required"] and not one["healthy"]],
        "failed_runs": [f"{run['jobName']} {run['runId']}" for run in data["failed"].get("results", [])],
        "running_runs": len(data["running"].get("results", [])),
    }

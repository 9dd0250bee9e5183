"""Where events go: into the lake first, and to whatever OpenLineage is configured to send them to.

The lake's table is :class:`DeltaTransport`, which the OpenLineage client knows as ``mesh``. Any
transport of the client's own (HTTP, Kafka, file, …) is configured as always: by ``OPENLINEAGE_URL``
and ``OPENLINEAGE__…``, or by an ``openlineage.yml``. It is fed by :class:`Forwarder` from a thread of
its own, so that a slow or broken receiver neither stops nor delays the work, nor the lake's table.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attr
from openlineage.client.client import Event, OpenLineageClient
from openlineage.client.event_v2 import RunEvent
from openlineage.client.transport import Config, Transport, get_default_factory

from mesh_assets.lineage.secret import redacted
from mesh_assets.lineage.store import FLUSH_SECONDS, LineageStore

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 2_000
"""Events that may wait for a slow receiver; beyond it new ones are left out, counted."""
CLOSE_SECONDS = 3.0
"""How long a run that ends waits for the receiver."""
_QUIET_SECONDS = 60.0


@attr.define
class DeltaConfig(Config):
    """Where the event table lies (``uri``), and how long an event may wait for its commit."""

    uri: str = ""
    flush_seconds: float = FLUSH_SECONDS

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> DeltaConfig:
        """From the client's configuration.

        Raises:
            ValueError: without ``uri``.
        """
        if not params.get("uri"):
            raise ValueError("the transport of type mesh needs uri: where the event table lies")
        return cls(str(params["uri"]), float(params.get("flush_seconds", FLUSH_SECONDS)))


class DeltaTransport(Transport):
    """Puts run events into a Delta table, durably, in few commits (:class:`LineageStore`)."""

    kind = "mesh"
    config_class = DeltaConfig

    def __init__(
        self,
        config: DeltaConfig,
        log: Callable[[str], None] = logger.warning,
        written: Callable[[Sequence[RunEvent]], None] | None = None,
    ) -> None:
        self.store = LineageStore(config.uri, log=log, flush_seconds=config.flush_seconds, written=written)

    def emit(self, event: Event) -> None:
        """Take one event over; only events of runs have a place in the table.

        Raises:
            TypeError: if it is none.
        """
        if not isinstance(event, RunEvent):
            raise TypeError(f"only run events can be kept, not a {type(event).__name__}")
        self.store.emit(event)

    def close(self, timeout: float = -1.0) -> bool:
        """Write what waits; whether everything was written."""
        return self.store.close()


get_default_factory().register_transport(DeltaTransport.kind, DeltaTransport)


class Forwarder:
    """Sends events on to a standard transport from a thread of its own.

    Args:
        client: the OpenLineage client, already configured.
        log: told of the first failure, of its end, and of what was left out.
        limit: how many events may wait.
    """

    def __init__(
        self, client: OpenLineageClient, log: Callable[[str], None], *, limit: int = QUEUE_LIMIT
    ) -> None:
        self._client = client
        self._log = log
        self._waiting: queue.Queue[RunEvent | None] = queue.Queue(limit)
        self._failing = False
        self._told = 0.0
        self.sent_count = 0
        self.failed_count = 0
        self.left_out_count = 0
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="lineage-forwarder", daemon=True
        )
        self._thread.start()

    def emit(self, events: Sequence[RunEvent]) -> None:
        """Take events over, or leave out those for which too many wait; never blocks, never raises."""
        for event in events:
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                self.left_out_count += 1
                self._tell(f"lineage: {self.left_out_count} events were not forwarded, too many wait")

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Wait for what is under way; whether every event was sent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            deadline = time.monotonic() + timeout
            try:
                self._waiting.put(None, timeout=timeout)
                thread.join(max(0.0, deadline - time.monotonic()))
            except queue.Full:
                pass
            waiting = self._waiting.qsize()
            if thread.is_alive() or waiting:
                self._log(
                    f"lineage: about {max(1, waiting)} events were not forwarded in time; the lake has them"
                )
                return False
        return not (self.failed_count or self.left_out_count)

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                self._client.emit(event)
            except Exception as error:  # noqa: BLE001 - whatever a transport of somebody else's raises
                self.failed_count += 1
                self._failing = True
                self._tell(f"lineage: an event could not be forwarded: {redacted(str(error))}")
            else:
                self.sent_count += 1
                if self._failing:
                    self._failing = False
                    self._log("lineage: events are forwarded again")
        try:
            self._client.close(CLOSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - as above
            self._tell(f"lineage: the transport did not close: {redacted(str(error))}")

    def _tell(self, text: str) -> None:
        """Say it, but not for every event."""
        now = time.monotonic()
        if now - self._told >= _QUIET_SECONDS or not self._told:
            self._told = now
            self._log(text)


def configured_forwarder(log: Callable[[str], None]) -> Forwarder | None:
    """A forwarder to the transport that environment or ``openlineage.yml`` name; None if they name none."""
    if not _mentioned():
        return None
    try:
        client = OpenLineageClient()
        if not client.config.transport and not os.environ.get("OPENLINEAGE_URL"):
            return None
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the configuration
        log(f"lineage: events are not forwarded, the configuration is wrong: {redacted(str(error))}")
        return None
    return Forwarder(client, log)


def _mentioned() -> bool:
    """Whether there may be a configuration at all; without one the client would print to the console."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    if any(name == "OPENLINEAGE_URL" or name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ):
        return True
    places = [Path.cwd() / "openlineage.yml", Path("~/.openlineage/openlineage.yml").expanduser()]
    if given := os.environ.get("OPENLINEAGE_CONFIG"):
        places.append(Path(given))
    return any(place.is_file() for place in places)

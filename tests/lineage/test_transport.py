"""Standard transports beside the lake's table: configured as always, never in the way."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openlineage.client.client import OpenLineageClient
from openlineage.client.event_v2 import Job, JobEvent
from openlineage.client.transport import get_default_factory

from mesh_assets.lineage import store as store_module
from mesh_assets.lineage.event import LineageRun
from mesh_assets.lineage.recorder import Recorder
from mesh_assets.lineage.store import read
from mesh_assets.lineage.transport import DeltaConfig, DeltaTransport, Forwarder, configured_forwarder
from tests.waiting import PATIENCE_SECONDS, until


@dataclass
class Receiver:
    """A small OpenLineage server."""

    url: str
    events: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 201
    waiting: bool = False
    released: threading.Event = field(default_factory=threading.Event)
    looks: Callable[[dict[str, Any]], None] | None = None


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver("")
    found.released.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.waiting = True
            found.released.wait(PATIENCE_SECONDS)
            event = json.loads(body)
            if found.looks is not None:
                found.looks(event)
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            found.events.append(event)
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    found.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own; what the client itself puts into the environment goes with the test."""
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    kind = "OPENLINEAGE__TRANSPORT__TRANSPORTS__DEFAULT_HTTP__"
    for name in ("TYPE", "URL", "AUTH", "ENDPOINT"):
        # Set and taken away: so the end of the test takes it away, too.
        monkeypatch.setenv(kind + name, "")
        monkeypatch.delenv(kind + name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "lake" / "lineage")


RUN = LineageRun("mesh.sales", "app.capture", "CAPTURE")


def test_without_configuration_nothing_is_forwarded() -> None:
    assert configured_forwarder(print) is None


def test_by_environment_events_go_to_both(
    uri: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "hunter2-key")
    messages: list[str] = []
    with Recorder(uri, log=messages.append) as recorder:
        recorder.emit(RUN.start())
        recorder.emit(RUN.complete())
        # Closing waits for the receiver, but not for long.
        until(lambda: len(receiver.events) == 2, "both events at the receiver")
    assert [event["eventType"] for event in receiver.events] == ["START", "COMPLETE"]
    assert receiver.headers[0]["authorization"] == "Bearer hunter2-key"
    stored = read(uri).collect().sort("event_time")
    assert stored["event_type"].to_list() == ["START", "COMPLETE"]
    sent, kept = receiver.events[0], json.loads(stored["event"][0])
    assert (sent["run"]["runId"], sent["eventTime"]) == (kept["run"]["runId"], kept["eventTime"])
    assert "hunter2" not in stored["event"].str.join("").item()
    assert messages == []


def test_by_file(uri: str, receiver: Receiver, tmp_path: Path) -> None:
    """Several transports at a time, one of them a file."""
    told = tmp_path / "events.jsonl"
    (tmp_path / "openlineage.yml").write_text(
        "transport:\n  type: composite\n  transports:\n"
        f"    - {{type: http, url: '{receiver.url}', endpoint: custom}}\n"
        f"    - {{type: file, log_file_path: '{told}', append: true}}\n"
    )
    with Recorder(uri, log=print) as recorder:
        recorder.emit(RUN.start(), RUN.complete())
        until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, "both events in the file")
    assert len(receiver.events) == 2


def told(event: dict[str, Any]) -> tuple[str, str, datetime]:
    """By what an event is known."""
    return event["run"]["runId"], event["eventType"], datetime.fromisoformat(event["eventTime"])


def test_whoever_gets_an_event_finds_it_in_the_lake(
    uri: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    missing: list[tuple[str, str, datetime]] = []

    def look(event: dict[str, Any]) -> None:
        held = read(uri).select("run_id", "event_type", "event_time").collect().rows()
        if told(event) not in held:
            missing.append(told(event))

    receiver.looks = look
    with Recorder(uri, log=print, flush_seconds=3600.0) as recorder:
        recorder.emit(RUN.start())
        # None of these is urgent.
        with recorder.run("sales", "orders.orders", "fold", datasets=[], always=True):
            pass
        recorder.emit(RUN.running())
        recorder.emit_later(RUN.running)
        assert recorder.store.unsent_count == 3
        until(lambda: receiver.events, "the receiver's first event")
        assert [event["eventType"] for event in receiver.events] == ["START"]
        recorder.emit(RUN.complete())
        until(lambda: len(receiver.events) == 6, "all events at the receiver")
        recorder.emit(RUN.running())
    until(lambda: len(receiver.events) == 7, "what was written last")
    assert missing == []
    assert [event["eventType"] for event in receiver.events] == [
        *("START", "START", "COMPLETE", "RUNNING", "RUNNING", "COMPLETE"),
        "RUNNING",
    ]


def test_what_the_lake_does_not_take_is_not_forwarded(
    uri: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.0)
    lake = Path(uri).parent
    lake.write_text("no folder")
    messages: list[str] = []
    recorder = Recorder(uri, log=messages.append)
    recorder.emit(RUN.start(), RUN.running())
    assert recorder.store.unsent_count == 2
    assert not recorder.close()
    assert receiver.events == []
    assert "gave up on 2 events" in messages[-1]
    # What comes to be written later is forwarded then.
    recorder = Recorder(uri, log=messages.append)
    recorder.emit(RUN.start(), RUN.running())
    lake.unlink()
    recorder.emit(RUN.complete())
    assert recorder.close()
    until(lambda: len(receiver.events) == 3, "all events at the receiver")
    assert [event["eventType"] for event in receiver.events] == ["START", "RUNNING", "COMPLETE"]
    assert len(read(uri).collect()) == 3


def test_a_refusing_receiver_is_told_once_and_holds_nothing_up(
    uri: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url.replace("http://", "http://bob:hunter2@"))
    receiver.status = 400
    messages: list[str] = []
    with Recorder(uri, log=messages.append) as recorder:
        for _ in range(5):
            recorder.emit(RUN.start())
    assert len(read(uri).collect()) == 5
    [message] = messages
    assert "could not be forwarded" in message
    assert "hunter2" not in message


def test_a_receiver_that_is_gone_holds_nothing_up(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    messages: list[str] = []
    recorder = Recorder(uri, log=messages.append)
    recorder.emit(RUN.start(), RUN.complete())
    assert recorder.close()
    assert len(read(uri).collect()) == 2
    assert messages


def test_a_receiver_that_does_not_answer_holds_nothing_up(
    uri: str, receiver: Receiver, tmp_path: Path
) -> None:
    # The client waits for an answer for longer than the receiver holds it.
    (tmp_path / "openlineage.yml").write_text(
        f"transport: {{type: http, url: '{receiver.url}', timeout: {2 * PATIENCE_SECONDS}}}\n"
    )
    receiver.released.clear()
    with Recorder(uri, log=print) as recorder:
        recorder.emit(RUN.start())
        until(lambda: receiver.waiting, "the receiver has the first event")
        recorder.emit(RUN.running(), RUN.complete())
        assert len(read(uri).collect()) == 3
        assert receiver.events == []
        receiver.released.set()
        until(lambda: len(receiver.events) == 3, "all events at the receiver")


def test_a_slow_receiver_fills_a_bounded_queue(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    receiver.released.clear()
    messages: list[str] = []
    forwarder = Forwarder(OpenLineageClient(), messages.append, limit=3)
    for _ in range(10):
        forwarder.emit([RUN.start()])
    assert forwarder.left_out_count >= 6
    assert "too many wait" in messages[0]
    assert not forwarder.close(timeout=0.2)
    assert "the lake has them" in messages[-1]
    receiver.released.set()


def test_a_wrong_configuration_is_told(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "carrier_pigeon")
    messages: list[str] = []
    with Recorder(uri, log=messages.append) as recorder:
        recorder.emit(RUN.start())
    assert "the configuration is wrong" in messages[0]
    assert len(read(uri).collect()) == 1


def test_disabled_means_not_forwarded(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert configured_forwarder(print) is None


def test_other_programs_may_use_the_lakes_table(uri: str) -> None:
    client = OpenLineageClient(config={"transport": {"type": "mesh", "uri": uri}})
    client.emit(RUN.start())
    client.emit(RUN.complete())
    assert client.close()
    assert len(read(uri).collect()) == 2
    assert isinstance(get_default_factory().create({"type": "mesh", "uri": uri}), DeltaTransport)
    with pytest.raises(ValueError, match="needs uri"):
        DeltaConfig.from_dict({})
    event = JobEvent(eventTime="2026-01-31T12:00:00Z", job=Job("a", "b"))
    with pytest.raises(TypeError, match="JobEvent"):
        DeltaTransport(DeltaConfig(uri)).emit(event)

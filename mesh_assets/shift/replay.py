"""Asking for a replay of quarantine: a note in the product's folder, done by whoever writes its logs.

One writer at a time holds a product's change logs, a shift. So whoever wants quarantined changes
judged again leaves a request, and the shift answers it between two batches; a request that a dead
shift left is answered by the next one. What was released already is simply not open any more.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from mesh_assets.lake.storage import Storage, storage_of
from mesh_assets.names import QUARANTINE, Layout, ProductName

_FOLDER = "requests"
_REQUEST, _ANSWER = ".request.json", ".answer.json"
_UNASKED = "unasked.json"
_KEPT_SECONDS = 86_400.0
"""After this long nobody waits for an answer any more."""


@dataclass(frozen=True)
class Replayed:
    """What a replay did to one table.

    Attributes:
        released: keys whose last quarantined change passes by now.
        kept: keys that stay in quarantine.
        row_count: changes appended once more.
        refused: why nothing could be done; empty if it could.
        before: keys that a shift had released by itself when it saw the contract as it is now.
        released_by: the run of that shift.
    """

    released: int = 0
    kept: int = 0
    row_count: int = 0
    refused: str = ""
    before: int = 0
    released_by: str = ""

    def sentence(self) -> str:
        """The same in words."""
        told = self.refused or f"{self.released:,} released, {self.kept:,} still failing"
        return f"{told} ({self.before:,} released before by run {self.released_by})" if self.before else told

    def __add__(self, other: Replayed) -> Replayed:
        return Replayed(
            self.released + other.released,
            self.kept + other.kept,
            self.row_count + other.row_count,
            self.refused or other.refused,
            self.before + other.before,
            self.released_by or other.released_by,
        )


@dataclass(frozen=True)
class Request:
    """Somebody wants a replay.

    Attributes:
        id: names it.
        tables: of which tables; empty: of all.
    """

    id: str
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of a request, per table.

    Attributes:
        run_id: of the shift that answered.
    """

    run_id: str
    tables: Mapping[str, Replayed] = field(default_factory=dict)


class Desk:
    """Where the replays of one product are asked for and answered.

    Args:
        layout: of the lake.
        name: the product.
    """

    def __init__(self, layout: Layout, name: ProductName) -> None:
        self.name = name
        self._storage: Storage = storage_of(layout.table(name, QUARANTINE, _FOLDER))

    def ask(self, tables: Sequence[str] = ()) -> Request:
        """Leave a request, durably."""
        request = Request(uuid.uuid4().hex, tuple(tables))
        record = {"tables": request.tables, "asked_at": datetime.now(UTC).isoformat()}
        self._storage.write(request.id + _REQUEST, json.dumps(record).encode())
        return request

    def requests(self) -> list[Request]:
        """What is asked for and not answered."""
        found = []
        for entry in self._storage.entries(""):
            if not entry.path.endswith(_REQUEST) or entry.path.startswith("."):
                continue
            try:
                record = json.loads(self._storage.read(entry.path))
                found.append(Request(entry.path.removesuffix(_REQUEST), tuple(record["tables"])))
            except FileNotFoundError:
                # Withdrawn meanwhile.
                continue
            except (ValueError, KeyError, TypeError):
                self._storage.remove([entry.path])
        return found

    def answer(self, request: Request, answer: Answer) -> None:
        """Say what was done, and close the request."""
        record = {
            "run_id": answer.run_id,
            "tables": {table: asdict(done) for table, done in answer.tables.items()},
        }
        self._storage.write(request.id + _ANSWER, json.dumps(record).encode())
        old = time.time() - _KEPT_SECONDS
        stale = [
            entry.path
            for entry in self._storage.entries("")
            if entry.path.endswith(_ANSWER) and entry.modified < old
        ]
        self._storage.remove([request.id + _REQUEST, *stale])

    def is_answered(self, request: Request) -> bool:
        """Whether there is an answer to be fetched."""
        return self._storage.exists(request.id + _ANSWER)

    def fetch(self, request: Request) -> Answer | None:
        """The answer, once there is one; it can be fetched once."""
        try:
            record = json.loads(self._storage.read(request.id + _ANSWER))
        except FileNotFoundError:
            return None
        self._storage.remove([request.id + _ANSWER])
        tables = {table: Replayed(**done) for table, done in record["tables"].items()}
        return Answer(record["run_id"], tables)

    def note(self, run_id: str, contract_hash: str, done: Mapping[str, Replayed]) -> None:
        """Remember what a shift released unasked, because the contract had become another."""
        released = {table: one.released for table, one in done.items() if one.released}
        if not released:
            return
        record = {"run_id": run_id, "contract_hash": contract_hash, "released": released}
        self._storage.write(_UNASKED, json.dumps(record).encode())

    def told(self, contract_hash: str, done: Mapping[str, Replayed]) -> dict[str, Replayed]:
        """What a replay did, with what was released unasked under the same contract before."""
        try:
            record = json.loads(self._storage.read(_UNASKED))
            run_id, released = str(record["run_id"]), dict(record["released"])
            noted = record["contract_hash"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return dict(done)
        if noted != contract_hash:
            return dict(done)
        return {
            table: replace(one, before=released[table], released_by=run_id) if table in released else one
            for table, one in done.items()
        }

    def withdraw(self, request: Request) -> None:
        """Take a request back."""
        self._storage.remove([request.id + _REQUEST])


class Desks:
    """The desks of the products that one shift writes, looked at every now and then.

    Args:
        layout: of the lake.
        names: the products.
        every_seconds: how often :meth:`serve` looks.
    """

    def __init__(self, layout: Layout, names: Sequence[ProductName], *, every_seconds: float = 1.0) -> None:
        self._desks = [Desk(layout, name) for name in names]
        self._every_seconds = every_seconds
        self._looked = float("-inf")

    def serve(
        self, run_id: str, replay: Callable[[ProductName, Sequence[str]], Mapping[str, Replayed] | None]
    ) -> Iterator[tuple[ProductName, Answer]]:
        """Answer what is asked for, if it is time to look.

        Args:
            run_id: of the shift.
            replay: replays these tables (all, if none is named) of a product of the shift; None if it
                could not and the request is to wait.
        """
        now = time.monotonic()
        if now - self._looked < self._every_seconds:
            return
        self._looked = now
        for desk in self._desks:
            for request in desk.requests():
                done = replay(desk.name, request.tables)
                if done is None:
                    break
                answer = Answer(run_id, done)
                desk.answer(request, answer)
                yield desk.name, answer

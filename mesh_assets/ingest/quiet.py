"""Tells a stream that has nothing to say from one that has not said it yet."""

from __future__ import annotations

import time
from datetime import datetime

from mesh_assets.cdc.decode import Decoder
from mesh_assets.cdc.source import Source
from mesh_assets.cdc.stream import ReplicationStream

_ASK_SECONDS = 0.2
_MOST_DOUBTS = 10


def passed(decoder: Decoder, lsn: int) -> bool:
    """Whether the server has sent everything before ``lsn`` and all of it was taken."""
    return not decoder.row_count and not decoder.in_transaction and decoder.wal_end >= lsn


class Quiet:
    """Watches one stream.

    Silence alone proves nothing on a busy server: the source's position is read, and the stream
    must have passed it without a change in between.

    Attributes:
        since: a moment of the source's clock before which everything has arrived; None while
            changes flow.
        over: quiet for the whole idle time.
    """

    def __init__(
        self, source: Source, decoder: Decoder, stream: ReplicationStream, idle_seconds: float
    ) -> None:
        self._source = source
        self._decoder = decoder
        self._stream = stream
        self._idle_seconds = idle_seconds
        self._changed = time.monotonic()
        self._tip: tuple[datetime, int] | None = None
        self._asked = 0.0
        self._doubts = 0
        self.since: datetime | None = None
        self.over = False

    def look(self, now: float) -> None:
        """Call it after every receive."""
        if self._decoder.row_count or self._decoder.in_transaction:
            self._changed, self._tip, self.since, self.over, self._doubts = now, None, None, False, 0
            return
        if now - self._changed < self._idle_seconds / 2:
            return
        if self._tip is None:
            self._tip = self._source.tip()
        moment, lsn = self._tip
        if self._decoder.wal_end >= lsn:
            self.since = moment
            self.over = now - self._changed >= self._idle_seconds
        elif now - self._asked > _ASK_SECONDS:
            self._asked = now
            self._stream.ask()
            self._doubts += 1
            if self._doubts == _MOST_DOUBTS:
                # WAL may end in something that is not flushed until somebody commits.
                self._source.heartbeat()


class Goal:
    """Everything that was committed when it was set; reached even while more and more comes.

    Attributes:
        since: a moment of the source's clock before which all of it was committed.
    """

    def __init__(self, source: Source, decoder: Decoder, stream: ReplicationStream) -> None:
        self._decoder = decoder
        self._stream = stream
        self._asked = 0.0
        self.since, _ = source.tip()
        # Flushed and decoded as a transaction is, so that the stream passes it.
        self._lsn = source.heartbeat()

    def reached(self, now: float, held_lsn: int) -> bool:
        """Whether all of it is held, or there was nothing of ours in it; call it after every receive."""
        if held_lsn >= self._lsn or passed(self._decoder, self._lsn):
            return True
        if now - self._asked > _ASK_SECONDS:
            self._asked = now
            self._stream.ask()
        return False

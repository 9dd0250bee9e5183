"""Editions of relations as the compiled walk finds them: numbered, with a hash index by oid.

An edition is one version of a relation, from one Relation message to the next that differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mesh_assets.cdc import kernel
from mesh_assets.cdc.frame import Framer


@dataclass
class Edition:
    """One version of a relation.

    Attributes:
        oid: the relation.
        announcement: its Relation message.
        framer: builds its change frames; None if the relation cannot be described.
        key: names of its key columns.
        batches: frames decoded and not yet taken.
    """

    oid: int
    announcement: bytes
    framer: Framer | None
    key: tuple[str, ...]
    batches: list[pa.RecordBatch] = field(default_factory=list)


class EditionTable:
    """All editions of a connection. A relation's oid finds its newest one.

    Attributes:
        index: open hash table of (oid + 1, edition number) pairs; a power of two of them.
        fields: per edition, what the walk must know of it.
        key_marks: per edition and column, whether the column is part of the key.
    """

    def __init__(self) -> None:
        self._editions: list[Edition] = []
        self._number_of: dict[int, int] = {}
        self._marked = 0
        self.index = np.zeros(2 * 64, np.int64)
        self.fields = np.zeros((64, kernel.EDITION_FIELDS), np.int64)
        self.key_marks = np.zeros(1024, np.uint8)

    def __getitem__(self, number: int) -> Edition:
        return self._editions[number]

    def newest(self, oid: int) -> Edition | None:
        """The newest edition of a relation, if it was announced."""
        number = self._number_of.get(oid)
        return None if number is None else self._editions[number]

    def park(self, oid: int, parked: bool) -> None:
        """Let the walk keep the relation's messages raw, or decode them again."""
        if oid in self._number_of:
            self.fields[self._number_of[oid], kernel.EDITION_PARKED] = parked

    def add(self, edition: Edition, key_marks: list[bool], *, parked: bool) -> None:
        """Add an edition, which takes the place of the relation's former one for all that follows."""
        number = len(self._editions)
        self._editions.append(edition)
        self._number_of[edition.oid] = number
        if number == len(self.fields):
            self.fields = np.concatenate([self.fields, np.zeros_like(self.fields)])
        begin = self._marked
        self._marked += len(key_marks)
        while self._marked > len(self.key_marks):
            self.key_marks = np.concatenate([self.key_marks, np.zeros_like(self.key_marks)])
        self.key_marks[begin : self._marked] = key_marks
        self.fields[number, kernel.EDITION_COLUMN_COUNT] = len(key_marks)
        self.fields[number, kernel.EDITION_KEY] = begin
        self.fields[number, kernel.EDITION_PARKED] = parked
        if 4 * len(self._number_of) > len(self.index):
            self.index = np.zeros(2 * len(self.index), np.int64)
            for oid, known in self._number_of.items():
                self._put(oid, known)
        else:
            self._put(edition.oid, number)

    def _put(self, oid: int, number: int) -> None:
        size = len(self.index) // 2
        at = oid * kernel.HASH % size
        while self.index[2 * at] not in (0, oid + 1):
            at = (at + 1) % size
        self.index[2 * at] = oid + 1
        self.index[2 * at + 1] = number

"""Editions of relations as the compiled walk finds them: numbered, with a hash index by oid.

An edition is one version of a relation, from one Relation message to the next that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mesh_assets.cdc import kernel
from mesh_assets.cdc.frame import Framer
from mesh_assets.cdc.message import Announcement
from mesh_assets.cdc.relation import IDENTITY_FULL, Column, Relation
from mesh_assets.cdc.type import PostgresType, arrow_type, builtin
from mesh_assets.errors import SourceError

Resolve = Callable[[int, int], PostgresType]
"""Gives the type for (oid, typmod)."""

KeyOf = Callable[[int, str, str], Sequence[str]]
"""Gives the key columns for (relation oid, schema, name)."""


@dataclass
class Edition:
    """One version of a relation.

    Attributes:
        oid: the relation.
        announcement: its Relation message.
        framer: builds its change frames; None if the relation cannot be described.
        refusal: why it cannot be described.
        key: names of its key columns.
        batches: frames decoded and not yet taken.
    """

    oid: int
    announcement: bytes
    framer: Framer | None
    refusal: SourceError | None
    key: tuple[str, ...]
    batches: list[pa.RecordBatch] = field(default_factory=list)


class Describer:
    """Turns Relation messages into editions: finds types and keys, each type once."""

    def __init__(self, resolve: Resolve, key_of: KeyOf | None) -> None:
        self._resolve = resolve
        self._key_of = key_of
        self._types: dict[tuple[int, int], PostgresType] = {}

    def key(self, announced: Announcement) -> tuple[str, ...]:
        """Names of the key columns; with replica identity FULL the message cannot tell them."""
        if announced.identity != IDENTITY_FULL:
            return tuple(one.name for one in announced.columns if one.key)
        if self._key_of is None:
            return ()
        return tuple(self._key_of(announced.oid, announced.schema, announced.name))

    def edition(self, announced: Announcement, message: bytes, key: tuple[str, ...]) -> Edition:
        """The edition that a Relation message begins."""
        columns = []
        for one in announced.columns:
            type_ = self._type(one.type_oid, one.typmod)
            columns.append(Column(one.name, type_, arrow_type(type_), one.name in key))
        try:
            relation = Relation(
                announced.oid, announced.schema, announced.name, announced.identity, tuple(columns)
            )
        except SourceError as refusal:
            return Edition(announced.oid, message, None, refusal, key)
        return Edition(announced.oid, message, Framer(relation), None, key)

    def _type(self, oid: int, typmod: int) -> PostgresType:
        type_ = builtin(oid, typmod) or self._types.get((oid, typmod))
        if type_ is None:
            type_ = self._types[oid, typmod] = self._resolve(oid, typmod)
        return type_


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

"""Every error that this package raises on purpose.

::

    MeshError
    ├── UnknownName              a product, table or column name that does not parse or does not exist
    ├── ContractError            a contract or product definition is wrong (file, line)
    ├── SettingError             an environment variable or option is wrong
    ├── SourceError              the operational database
    │   ├── SourceUnreachable
    │   ├── CredentialsRejected
    │   ├── SourceNotLogical     wal_level is not logical, or no free slot or sender
    │   ├── SourceNotReady       several of these at once
    │   ├── PublicationMissing
    │   │   └── PublicationLost  it vanished while our slot stayed (a gap)
    │   ├── IdentityMissing      a published table without replica identity
    │   ├── TableRefused         a table that cannot be captured as it is
    │   ├── SnapshotBlocked      open transactions keep a slot from being created
    │   ├── SnapshotStale        a snapshot that can no longer be read as it was
    │   ├── SlotBusy             another shift holds the slot
    │   ├── SlotLost             the slot is gone, invalidated or ahead of the ledger (a gap)
    │   ├── SourceDisconnected   the connection broke while streaming
    │   └── MigrationRefused     a schema change that cannot be applied by itself
    ├── LakeError                storage
    │   ├── ShiftBusy            another derive shift of the domain runs
    │   ├── Fenced               another writer has appended: this one must end
    │   ├── CommitConflict       another writer replaced the same files first: nothing was written
    │   ├── StorageFull
    │   ├── LayoutUnknown        written by a newer version of the program
    │   ├── TableMissing
    │   └── AsOfRefused          a moment, version or position outside of what is held
    ├── TransformError           a derived product's own function failed, or what it gave is not as promised
    ├── QueryRefused             SQL that does not parse, does not only read, or fails
    ├── ParityDiffers            source and lake differ at one and the same position
    └── MeshNotRunning           a command needs the running mesh

A message says what was wrong and where; ``available`` lists what there was instead and
``hint`` says what to do next. Users see all three and never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class MeshError(Exception):
    """Base of all errors that name a user's or an environment's mistake.

    Args:
        message: what was wrong and where, in one sentence.
        available: what would have been valid, if that can be listed.
        hint: what to do next.
    """

    def __init__(self, message: str, *, available: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.available = sorted(available)
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.available:
            parts.append("available: " + ", ".join(self.available))
        if self.hint:
            parts.append("hint: " + self.hint)
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[MeshError], state: dict[str, object]) -> MeshError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class UnknownName(MeshError):
    """A product, table, column or key that does not parse or does not exist."""

    @classmethod
    def of(cls, kind: str, name: str, available: Iterable[str]) -> UnknownName:
        """Build the error with the nearest available name as its hint."""
        known = list(available)
        near = get_close_matches(name, known, n=1)
        return cls(
            f"there is no {kind} {name!r}",
            available=known,
            hint=f"did you mean {near[0]!r}?" if near else "",
        )


@dataclass(frozen=True, order=True)
class Mistake:
    """One thing wrong in a file: its line (from 1), what it is, what is allowed, what to do."""

    line: int
    message: str
    allowed: tuple[str, ...] = ()
    hint: str = ""

    def render(self, file: str) -> str:
        """``file:line: message``, then the allowed values and the hint on lines of their own."""
        parts = [f"{file}:{self.line}: {self.message}"]
        if self.allowed:
            parts.append("allowed: " + ", ".join(self.allowed))
        if self.hint:
            parts.append("hint: " + self.hint)
        return "\n  ".join(parts)


class ContractError(MeshError):
    """A contract or product definition is wrong; the message starts with ``file:line:``.

    Attributes:
        mistakes: every mistake of the file, in the order of its lines (empty if not from a file).
    """

    mistakes: tuple[Mistake, ...] = ()

    @classmethod
    def of(cls, file: str, mistakes: Iterable[Mistake]) -> ContractError:
        """One error for all mistakes of a file."""
        ordered = tuple(sorted(set(mistakes)))
        error = cls("\n".join(mistake.render(file) for mistake in ordered))
        error.mistakes = ordered
        return error


class SettingError(MeshError):
    """An environment variable or an option is wrong."""


class SourceError(MeshError):
    """The operational database cannot be captured as asked."""


class SourceUnreachable(SourceError):
    """No server answers at the source's address."""


class CredentialsRejected(SourceError):
    """The server answered but refused user, password, database or privilege."""


class SourceNotLogical(SourceError):
    """The server does not write logical WAL, or has no free slot or sender."""


class PublicationMissing(SourceError):
    """The publication does not exist or lacks a table, and may not be created by us."""


class PublicationLost(PublicationMissing):
    """The publication vanished while our slot stayed: what was not published is a gap."""


class TableRefused(SourceError):
    """A table that cannot be captured as it is (a view, unlogged, hidden rows, a reserved name)."""


class SnapshotBlocked(SourceError):
    """Open transactions at the server keep a replication slot from being created."""


class SnapshotStale(SourceError):
    """The table was rewritten, or its snapshot ended, before all of it was read: take another."""


class SourceNotReady(SourceError):
    """Several things at the source must be put right first.

    Attributes:
        problems: one error for each of them.
    """

    def __init__(self, message: str, problems: Iterable[MeshError]) -> None:
        self.problems = tuple(problems)
        listed = "".join(f"\n- {problem}" for problem in self.problems)
        super().__init__(f"{message}:{listed}")


class IdentityMissing(SourceError):
    """A table without replica identity: publishing it would make the application's UPDATE fail."""


class SlotBusy(SourceError):
    """Another process holds the replication slot."""


class SlotLost(SourceError):
    """The slot is gone, invalidated, or confirms more than the ledger holds: a gap."""


class SourceDisconnected(SourceError):
    """The connection broke while streaming; nothing is lost, the next shift goes on."""


class MigrationRefused(SourceError):
    """The source's schema changed in a way that cannot be applied by itself."""


class LakeError(MeshError):
    """Storage cannot be read or written as asked."""


class Fenced(LakeError):
    """Another writer has appended to the table since we last did: this writer must end."""


class ShiftBusy(LakeError):
    """Another derive shift of the domain runs in this installation: this one must wait or end."""


class CommitConflict(LakeError):
    """Another writer replaced the same files, or the schema, first: nothing was written, try again."""


class StorageFull(LakeError):
    """The lake's disk is full: nothing was acknowledged, nothing is lost."""


class LayoutUnknown(LakeError):
    """The layout on storage was written by a newer version of this program."""


class TableMissing(LakeError):
    """The Delta table does not exist (yet)."""


class AsOfRefused(LakeError):
    """The moment, version or position asked for is outside of what is held."""


class TransformError(MeshError):
    """A derived product's function failed or took too much, or what it gave is not what the contract says."""


class QueryRefused(MeshError):
    """An SQL text that does not parse, is not one statement that only reads, or fails when run."""


class ParityDiffers(MeshError):
    """Source and lake differ at one and the same position."""


class MeshNotRunning(MeshError):
    """The command needs the running mesh."""

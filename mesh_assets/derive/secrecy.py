"""What a derive step may say where rows have restricted columns: that it failed, or printed, and where.

The words themselves may quote values; they are kept in files of the installation for its owner alone.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mesh_assets.derive import child
from mesh_assets.derive.plan import DerivePlan
from mesh_assets.errors import MeshError
from mesh_assets.lake.access import Principal
from mesh_assets.lake.scratch import private
from mesh_assets.quality.concealment import discreet, restricted, untold

_ERRORS = "errors"
_PRINTS = "prints"
_MOST_BYTES = 1 << 20
"""So much of the end of what a transform printed is kept."""
_TELL_SECONDS = 60.0
"""How often one product's prints are told of at most."""


def secretive(plan: DerivePlan) -> bool:
    """Whether a product or one of its inputs has restricted columns."""
    return any(restricted(table) for table in plan.product.contract.tables) or any(
        one.restricted for one in plan.inputs
    )


@contextmanager
def concealed(plan: DerivePlan) -> Iterator[None]:
    """Tell of errors of libraries inside their kind, place and expression only; the owner finds the rest.

    Raises:
        MeshError: instead of such an error, if the product is :func:`secretive`.
    """

    def conceal(error: BaseException) -> MeshError:
        hint = keep_error(plan, "".join(traceback.format_exception(error)))
        return untold(str(plan.name), error, said=child.bare(error, _words(plan)), hint=hint)

    with discreet(conceal if secretive(plan) else None):
        yield


def keep_error(plan: DerivePlan, text: str) -> str:
    """Keep the whole text of an error for the owner; returns the hint that says where."""
    return f"the whole text is in {_kept(plan, _ERRORS, text.encode())}"


def forget_error(plan: DerivePlan) -> None:
    """The product's transform ran: what it failed for before is not needed any more."""
    _file(plan, _ERRORS).unlink(missing_ok=True)


class Prints:
    """What transforms of :func:`secretive` products print, kept for the owner; several threads may use it.

    Attributes:
        messages: that something was printed, for everybody.
    """

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self.messages: list[str] = []

    def keep(self, plan: DerivePlan, said: Path) -> None:
        """Keep what a run of a product's transform has printed into a file, if it has."""
        size = said.stat().st_size if said.exists() else 0
        if not size:
            return
        with said.open("rb") as file:
            line_count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_MOST_BYTES), b""))
            file.seek(-1, os.SEEK_END)
            line_count += file.read() != b"\n"
            file.seek(max(0, size - _MOST_BYTES))
            where = _kept(plan, _PRINTS, file.read())
        name, now = str(plan.name), time.monotonic()
        if now - self._told.get(name, float("-inf")) < _TELL_SECONDS:
            return
        self._told[name] = now
        self.messages.append(
            f"{name}: its transform printed {line_count:,} lines ({size:,} bytes), which are not shown: they "
            f"may quote values of restricted columns; they are in {where}"
        )


def _kept(plan: DerivePlan, kind: str, content: bytes) -> str:
    file = _file(plan, kind)
    private(file.parent)
    file.touch(mode=0o600)
    file.write_bytes(content)
    return f"{file}, which only {Principal.local().name} can read"


def _file(plan: DerivePlan, kind: str) -> Path:
    return plan.home / kind / f"{plan.name}.txt"


def _words(plan: DerivePlan) -> str:
    """What is no value: the transform's source, and the names of columns."""
    source = plan.transform.read_text(errors="replace") if plan.transform.exists() else ""
    columns: Sequence[str] = [
        column.name for table in plan.product.contract.tables for column in table.columns
    ]
    return " ".join([source, *columns, *(f"_{side}_{name}" for name in columns for side in ("new", "old"))])

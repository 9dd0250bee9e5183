"""Shifts on a lake whose disk is full: ``python -m tests.ingest.full_disk URL FOLDER``.

The folder is a small file system of its own, mounted by the test that runs this. Prints what
happened as JSON, a :class:`Report`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mesh_assets.cdc.source import Source
from mesh_assets.errors import StorageFull
from mesh_assets.lake.ledger import Ledger
from mesh_assets.parity import parity
from mesh_assets.shift.plan import CapturePlan
from tests.crash.workload import Application
from tests.crash.world import plan_for
from tests.ingest.capture import drain

_FREE_KIB = (0, 4, 12, 24, 40, 64, 100, 160)
"""How much is left for one shift after the other, so that it ends at different files."""


@dataclass
class Report:
    """What happened.

    Attributes:
        full: messages of the shifts that met a full disk.
        moved: positions that moved although the disk was full, which must not be.
        differing: tables that differ from the source once there is space again.
    """

    full: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


@contextmanager
def only(free_kib: int, folder: Path) -> Iterator[None]:
    """Fill the disk but for so much."""
    ballast = folder / "ballast"
    left = shutil.disk_usage(folder).free - free_kib * 1024
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(left, 1))
    try:
        yield
    finally:
        ballast.unlink()


def _positions(plan: CapturePlan) -> tuple[int, int]:
    """What the ledger has, and what the slot was told."""
    with Source(plan.source) as source:
        slot = source.slot()
    last = Ledger(plan.part_uri("ledger")).latest()
    assert slot is not None
    assert last is not None
    return last.end_lsn, slot.confirmed_lsn


def run(url: str, folder: Path) -> Report:
    """Capture, fill the disk, try, free it, catch up, compare."""
    report = Report()
    plan = plan_for(url, folder / "lake")
    application = Application(url, seed=5)
    application.transact(40)
    drain(plan)
    for free_kib in _FREE_KIB:
        application.transact(20)
        with only(free_kib, folder):
            try:
                drain(plan)
            except StorageFull as error:
                report.full.append(str(error))
            held, confirmed = _positions(plan)
        if confirmed > held:
            report.moved.append(f"{free_kib} KiB: {confirmed:X} was acknowledged, the ledger has {held:X}")
    drain(plan)
    for target in plan.targets:
        result = parity(plan, target)
        if not result.equal:
            report.differing.append(result.sentence())
    application.close()
    return report


if __name__ == "__main__":
    code = 1
    try:
        print(json.dumps(asdict(run(sys.argv[1], Path(sys.argv[2])))))
        code = 0
    except Exception:  # noqa: BLE001 - printed for the test that reads it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(code)

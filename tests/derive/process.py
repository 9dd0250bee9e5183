"""One derive shift in a process of its own, to be killed, or to be kept waiting.

``python -m tests.derive.process FOLDER [CLAIM_SECONDS]``
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from mesh_assets.derive import DeriveShift
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.upkeep import Upkeep
from mesh_assets.shift.report import Budget, Silent
from tests.derive.world import World

# Everything happens as often as it can.
_EAGER = Budget(
    idle_seconds=0.3,
    batch_seconds=0.0,
    check_seconds=None,
    fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0),
    upkeep=Upkeep(
        archive_seconds=0.5, vacuum_seconds=30.0, run_length=3, commit_count=4, look_seconds=0, tend_seconds=0
    ),
)


class _Printing(Silent):
    """Prints what it is told, at once."""

    def message(self, text: str) -> None:
        print(text, flush=True)


def main() -> int:
    """Run one shift; 0 if nothing was refused."""
    world = World(Path(sys.argv[1]))
    budget = replace(_EAGER, claim_seconds=float(sys.argv[2])) if len(sys.argv) > 2 else _EAGER
    result = DeriveShift(world.plans(), budget=budget, observer=_Printing()).run()
    print(result.refused)
    return 1 if result.refused else 0


if __name__ == "__main__":
    code = 2
    try:
        code = main()
    except Exception:  # noqa: BLE001 - printed for whoever reads the output
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(code)

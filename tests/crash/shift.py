"""One shift in a process of its own, to be killed.

``python -m tests.crash.shift FD`` loads everything that a shift needs, writes a byte to the file
descriptor, and waits for one line of JSON on its standard input, an
:class:`~tests.crash.pool.Order`. So a kill costs what the shift does, not its start. The last line
that it prints is JSON too, an :class:`~tests.crash.pool.Ending`, unless it was killed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, replace

from mesh_assets import failpoint
from mesh_assets.cdc.warm import warm
from mesh_assets.errors import MeshError
from mesh_assets.ingest.shift import Shift
from mesh_assets.lake import table
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.upkeep import Upkeep
from mesh_assets.shift.report import Budget, Silent
from tests.crash.pool import Ending, Order
from tests.crash.world import plan_for

# Everything happens as often as it can, so that every kill point is reached within seconds. A data
# file is vacuumed only when it was not referred to for longer than a commit takes.
_EAGER = Budget(
    idle_seconds=0.6,
    batch_seconds=0.05,
    batch_rows=150,
    snapshot_rows=25,
    fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0),
    upkeep=Upkeep(
        archive_seconds=0.5, vacuum_seconds=10.0, run_length=3, commit_count=4, look_seconds=0, tend_seconds=0
    ),
)
_CHECKPOINT_INTERVAL = 6


class Printing(Silent):
    """Prints what happens, for whoever looks into a failure."""

    def message(self, text: str) -> None:
        print(text, flush=True)


def main() -> int:
    """Load, wait, run one shift."""
    warm()
    table.CHECKPOINT_INTERVAL = _CHECKPOINT_INTERVAL
    os.write(int(sys.argv[1]), b"+")
    line = sys.stdin.readline()
    if not line:
        return 0
    order = Order(**json.loads(line))
    failpoint.arm(order.failpoint)
    try:
        plan = plan_for(order.url, order.lake, gated=order.gated)
        budget = replace(_EAGER, claim_seconds=order.claim_seconds)
        result = Shift(plan, budget=budget, observer=Printing()).run()
    except MeshError as error:
        traceback.print_exc()
        ending = Ending(error=type(error).__name__, message=str(error))
    else:
        ending = Ending(reason=result.reason, row_count=result.row_count)
    print(json.dumps(asdict(ending)), flush=True)
    return 1 if ending.error else 0


if __name__ == "__main__":
    code = 2
    try:
        code = main()
    except Exception:  # noqa: BLE001 - printed for whoever reads the output
        traceback.print_exc()
    sys.stderr.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(code)

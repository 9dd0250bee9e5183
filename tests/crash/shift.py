"""One shift in a process of its own, to be killed: ``python -m tests.crash.shift URL LAKE``."""

from __future__ import annotations

import os
import sys

from tests.crash.world import plan_for

from mesh_assets.ingest import Shift
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.report import Budget, Silent


class Printing(Silent):
    """Prints what happens, for the test that reads it."""

    def message(self, text: str) -> None:
        print(text, flush=True)


def main() -> None:
    url, lake = sys.argv[1:]
    # Folds whenever it may, so that every kill point is reached.
    eager = FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0)
    budget = Budget(idle_seconds=0.6, batch_seconds=0.05, batch_rows=150, snapshot_rows=25, fold=eager)
    result = Shift(plan_for(url, lake), budget=budget, observer=Printing()).run()
    print(result, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(0)

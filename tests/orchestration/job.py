"""Jobs that run workers execute in tests; what they do is in their tags."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import dagster as dg


@dg.op
def behave(context) -> None:  # type: ignore[no-untyped-def]
    """Say that it runs, then succeed, fail, be killed, or wait to be cancelled."""
    tags = context.run.tags
    Path(tags["mark"]).write_text(str(os.getpid()))
    match tags["how"]:
        case "fail":
            raise ValueError("as it was told")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            time.sleep(600)


@dg.job(executor_def=dg.in_process_executor)
def told() -> None:
    behave()

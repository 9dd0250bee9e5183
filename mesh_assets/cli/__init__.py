"""The ``mesh`` command: starts and stops the mesh, and answers questions about it.

- ``app`` — the commands, their options and their help; light, so that help and completion are quick.
- ``terminal`` — tables, JSON, errors: how answers look.
- ``completion`` — names for the shell to complete.
- ``status``, ``product``, ``lineage``, ``search``, ``query``, ``key``, ``parity``, ``quarantine``,
  ``validation``, ``shift``, ``installation`` — what the commands do; imported when one runs.

Exit codes: 0 it worked, 1 a difference or a mistake was found, 2 the command was written wrongly,
130 it was interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run one command and end the process."""
    from mesh_assets.cli.app import app

    try:
        app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the process ends here; what nobody expected is shown whole
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            # The reader has had enough (`mesh sql … | head`).
            code = code or 1
    # The Delta library's threads can abort a process that ends in the ordinary way.
    os._exit(code)

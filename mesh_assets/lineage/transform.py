"""Column lineage of a product's ``transform.py``: planned in a process of its own, kept until it changes.

The file is somebody else's code: it may fail, print or never return. Then its lineage is everything
of everything, which is never wrong, and the reason is told.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from mesh_assets.lake.scratch import Scratch
from mesh_assets.lake.storage import storage_of
from mesh_assets.lineage.columns import ColumnLineage, ColumnSource, column_lineage
from mesh_assets.lineage.secret import redacted

FUNCTION = "transform"
SECONDS = 30.0
"""How long planning may take; nothing is computed, so it takes a fraction of a second."""
_GRACE_SECONDS = 5
_FORMAT = 1
_MESSAGE_LIMIT = 500


def transform_columns(
    path: Path | str,
    inputs: Mapping[str, pl.Schema],
    table: str,
    *,
    kept: str = "",
    log: Callable[[str], None] | None = None,
    seconds: float = SECONDS,
) -> ColumnLineage | None:
    """What the transform in a file makes each of its columns of; None if that cannot be found out.

    Args:
        path: the file.
        inputs: the columns of each input.
        table: the table that a transform makes which returns a single frame.
        kept: the folder (a path or URI) in which answers are kept; empty: they are not.
        log: told why there is no answer.
        seconds: how long it may take.
    """
    tell = log or (lambda text: None)
    try:
        name = _digest(path, inputs, table) + ".json"
        if kept and (held := _held(kept, name)) is not None:
            return held
        found = _planned(Path(path), inputs, table, seconds)
        if kept:
            storage = storage_of(kept)
            storage.prepare()
            storage.write(name, json.dumps(found).encode())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        tell(f"lineage: the columns of {path} are not known: {redacted(str(error))[-_MESSAGE_LIMIT:]}")
        return None
    return _lineage(found)


Plain = dict[str, dict[str, list[list[str | bool]]]]


def _digest(path: Path | str, inputs: Mapping[str, pl.Schema], table: str) -> str:
    columns = {
        name: {column: str(kind) for column, kind in schema.items()} for name, schema in inputs.items()
    }
    said = json.dumps([_FORMAT, pl.__version__, table, columns], sort_keys=True)
    return hashlib.sha256(Path(path).read_bytes() + b"\0" + said.encode()).hexdigest()[:32]


def _held(kept: str, name: str) -> ColumnLineage | None:
    try:
        return _lineage(json.loads(storage_of(kept).read(name)))
    except FileNotFoundError:
        return None


def _lineage(plain: Plain) -> ColumnLineage:
    return {
        table: {
            column: tuple(ColumnSource(*source) for source in sources)  # type: ignore[arg-type]
            for column, sources in columns.items()
        }
        for table, columns in plain.items()
    }


def _planned(path: Path, inputs: Mapping[str, pl.Schema], table: str, seconds: float) -> Plain:
    """Have another process plan it.

    Raises:
        ValueError: if the transform fails; the text is the end of what it said.
        subprocess.TimeoutExpired: if it takes too long.
    """
    with Scratch("lineage") as folder:
        answer = folder / "columns.json"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(path.absolute()), str(answer), str(seconds)],
            input=pickle.dumps((dict(inputs), table)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            env=environment,
            check=False,
        )
        if ended.returncode or not answer.exists():
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise ValueError(said[-1] if said else f"it ended with code {ended.returncode}")
        found: Plain = json.loads(answer.read_text())
        return found


def main() -> None:
    """``python -m mesh_assets.lineage.transform FILE ANSWER SECONDS``; inputs, pickled, on standard input."""
    path, answer = Path(sys.argv[1]), Path(sys.argv[2])
    # The system's own doing: also once nobody is left who would end it.
    signal.alarm(math.ceil(float(sys.argv[3])) + _GRACE_SECONDS)
    inputs, table = pickle.load(sys.stdin.buffer)
    module = types.ModuleType(FUNCTION)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    answer.write_text(json.dumps(column_lineage(module.__dict__[FUNCTION], inputs, table)))


if __name__ == "__main__":
    main()

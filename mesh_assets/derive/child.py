"""Runs transforms for :mod:`mesh_assets.derive.transform`, in a process of its own.

``python child.py REQUESTS REPLIES DUMP``: two inherited pipe ends, of which the first takes addresses of
files with requests, and a file that takes the stack when SIGUSR1 comes. Imports nothing of the mesh, so
that it starts fast and has little memory to begin with; what the transform prints goes to standard
error, or to a file that the request names.
"""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import io
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import polars as pl

FUNCTION = "transform"
EXACT_SUFFIX = "_exact"
"""As :data:`mesh_assets.contract.definition.EXACT_SUFFIX`."""
_LOOK_SECONDS = 1.0
_IN_EXPRESSION = "\n\nThis error occurred in the following expression:\n\t"
_WORD = re.compile(r"\w+")
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_TEXTS = (pl.String, pl.Categorical, pl.Enum)


class Refused(Exception):
    """What the function gave is not as promised; the text says why.

    Attributes:
        names: of the text those that the function may have made of values.
        bare: the text without them.
    """

    def __init__(self, message: str, hint: str = "", *, names: Iterable[object] = (), bare: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.names = tuple(map(str, names))
        self.bare = bare


class Modules:
    """Transforms by file, loaded again whenever the file's content is another."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[str, types.ModuleType]] = {}

    def load(self, path: str) -> types.ModuleType:
        """The module of a file, as it is now."""
        text = Path(path).read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        held = self._loaded.get(path)
        if held is not None and held[0] == digest:
            return held[1]
        module = types.ModuleType("transform")
        module.__file__ = path
        exec(compile(text, path, "exec"), module.__dict__)
        self._loaded[path] = (digest, module)
        return module


def main() -> None:
    """Answer requests until there are no more."""
    requests = Connection(int(sys.argv[1]), writable=False)
    replies = Connection(int(sys.argv[2]), readable=False)
    dump = Path(sys.argv[3]).open("w")  # noqa: SIM115 - open as long as the process lives
    faulthandler.register(signal.SIGUSR1, dump, all_threads=True)
    os.dup2(2, 1)
    _expendable()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    modules = Modules()
    replies.send({"ready": True})
    while True:
        try:
            address = requests.recv()
        except EOFError:
            break
        request = pickle.loads(Path(address).read_bytes())
        with _printing(request.get("said")):
            reply = answer(modules, request)
        replies.send(reply)


@contextmanager
def _printing(path: str | None) -> Iterator[None]:
    """Let what is printed inside, by native code and children too, go to a file, if one is given."""
    if path is None:
        try:
            yield
        finally:
            # This process may be ended before it would do so by itself.
            _flush()
        return
    _flush()
    kept = os.dup(2)
    with Path(path).open("ab") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    try:
        yield
    finally:
        _flush()
        for stream in (1, 2):
            os.dup2(kept, stream)
        os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # The transform has put something else in its place, or closed it.
            continue


def _watch(parent: int) -> None:
    """End with the parent, also in the middle of a transform."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _expendable() -> None:
    """Where memory runs out, this process goes first (Linux)."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        try:
            score.write_text("1000")
        except OSError:
            return


def answer(modules: Modules, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one transform and write its tables; what went wrong is part of the answer."""
    path = str(request["path"])
    line, inputs = 1, {}
    try:
        module = modules.load(path)
        function = getattr(module, FUNCTION)
        line = function.__code__.co_firstlineno
        inputs = {name: _plan(data) for name, data in request["inputs"].items()}
        given = function(inputs)
        tables = _tables(given, request["tables"])
        region = request["region"]
        plans = {
            name: _shaped(name, frame, request["tables"][name], region) for name, frame in tables.items()
        }
        sinks = [
            plan.sink_ipc(Path(request["folder"]) / f"{name}.arrow", compression="lz4", lazy=True)
            for name, plan in plans.items()
        ]
        pl.collect_all(sinks, engine="streaming")
    except Refused as refused:
        return _not_promised(refused, path, line, inputs)
    except (KeyboardInterrupt, SystemExit) as ended:
        return {"line": line, "error": f"{type(ended).__name__}: a transform must not end the program"}
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises, panics of polars included
        return _raised(error, path, line)
    return {"line": line}


def _plan(data: bytes) -> pl.LazyFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.LazyFrame.deserialize(io.BytesIO(data))


def _not_promised(
    refused: Refused, path: str, line: int, inputs: Mapping[str, pl.LazyFrame]
) -> dict[str, Any]:
    """The refusal; with a bare text, if a name in it is of no column of an input and not in the source."""
    answer: dict[str, Any] = {"line": line, "error": str(refused), "hint": refused.hint}
    known = {column for frame in inputs.values() for column in frame.collect_schema()}
    words = set(_WORD.findall(_source(path)))
    if any(name not in known and not words.issuperset(_WORD.findall(name)) for name in refused.names):
        answer["bare"] = refused.bare
    return answer


def _raised(error: BaseException, path: str, line: int) -> dict[str, Any]:
    """The error with the last line of the user's file that it came through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return {"line": error.lineno or 1, "error": f"not Python: {error.msg}"}
    mine = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    text = str(error).split("\n\nResolved plan until failure", 1)[0].strip()
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    answer = {
        "line": mine[-1].lineno if mine else line,
        "error": said,
        "bare": bare(error, _source(path)),
    }
    if isinstance(error, KeyError) and mine:
        answer["hint"] = "inputs are called as in defs.yaml"
    return answer


def _source(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        # Removed meanwhile.
        return ""


def bare(error: BaseException, source: str) -> str:
    """The error's kind and the expression that failed: of all words only polars' own and the source's.

    Whatever else a text says may be a value.
    """
    kind, (_, marker, expression) = type(error).__name__, str(error).rpartition(_IN_EXPRESSION)
    if not marker:
        return kind
    words = _polars_words() | set(_WORD.findall(source))
    shown = _WORD.sub(lambda found: found[0] if found[0] in words else "…", expression.strip().split("\n")[0])
    return f"{kind} in {shown}"


@functools.cache
def _polars_words() -> frozenset[str]:
    spaces = (pl, pl.Expr, *(getattr(pl.Expr, name) for name in ("str", "dt", "list", "struct")))
    return frozenset({"strict_cast", "dyn", "int", "float", *(word for one in spaces for word in dir(one))})


def _tables(given: object, wanted: Mapping[str, Any]) -> dict[str, pl.LazyFrame]:
    """What the function gave, by table.

    Raises:
        Refused: if these are not the product's tables.
    """
    names = ", ".join(wanted)
    if isinstance(given, pl.LazyFrame | pl.DataFrame):
        if len(wanted) != 1:
            raise Refused(
                f"it returns one frame, the product has the tables {names}", "return a dict of them"
            )
        given = {next(iter(wanted)): given}
    if not isinstance(given, Mapping):
        raise Refused(
            f"it returns {type(given).__name__}, not a LazyFrame or a dict of them",
            "did you forget to return?" if given is None else "",
        )
    if set(given) != set(wanted):
        raise Refused(
            f"it returns the tables {', '.join(map(str, given)) or 'none'}; the contract has {names}",
            names=given,
            bare=f"it returns {len(given)} tables of other names; the contract has {names}",
        )
    for name, frame in given.items():
        if not isinstance(frame, pl.LazyFrame | pl.DataFrame):
            raise Refused(f"table {name!r} is a {type(frame).__name__}, not a LazyFrame")
    return {name: given[name].lazy() for name in wanted}


def _shaped(
    table: str, frame: pl.LazyFrame, wanted: Mapping[str, Any], region: pl.DataFrame | None
) -> pl.LazyFrame:
    """The frame with the promised columns in order and type, and only the rows of the region.

    Raises:
        Refused: if it has others.
    """
    schema = frame.collect_schema()
    columns: Mapping[str, pl.DataType] = wanted["columns"]
    missing = [name for name in columns if name not in schema]
    texts = [name for name in schema if name not in columns and name.removesuffix(EXACT_SUFFIX) in columns]
    extra = [name for name in schema if name not in columns and name not in texts]
    if missing or extra:
        lacks = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        has = [f"has {', '.join(map(repr, extra))}, which the contract has not"] if extra else []
        raise Refused(
            f"table {table!r} {' and '.join(lacks + has)}",
            f"the contract's columns are {', '.join(columns)}",
            names=extra,
            bare=f"table {table!r} {' and '.join([*lacks, f'has {len(extra)} that the contract has not'])}",
        )
    fitted = []
    for name, kind in columns.items():
        if not _fits(schema[name], kind):
            raise Refused(
                f"column {name!r} of {table!r} is {_kind(schema[name])}, the contract says {kind}",
                f"write .cast({_spelled(kind)}), or change the contract's physicalType",
            )
        fitted.append(pl.col(name) if schema[name] == kind else pl.col(name).cast(kind))
    for name in texts:
        if schema[name] not in (pl.String, pl.Null):
            raise Refused(
                f"column {name!r} of {table!r} is {_kind(schema[name])}, not the text of a value that column "
                f"{name.removesuffix(EXACT_SUFFIX)!r} cannot hold",
                "write .cast(pl.String), or leave it out",
            )
        fitted.append(pl.col(name).cast(pl.String))
    shaped = frame.select(fitted)
    if region is None:
        return shaped
    return shaped.join(region.lazy(), on=region.columns, how="semi")


def _fits(given: pl.DataType, wanted: pl.DataType) -> bool:
    """Whether a cast keeps every value, or fails on one that it cannot keep."""
    if given == wanted or given == pl.Null:
        return True
    if given in _INTEGERS:
        return wanted in _INTEGERS or isinstance(wanted, pl.Decimal) or wanted == pl.Float64
    if isinstance(given, pl.Decimal) and isinstance(wanted, pl.Decimal):
        return given.scale <= wanted.scale
    if given == pl.Float32:
        return wanted == pl.Float64
    if isinstance(given, pl.Datetime) and isinstance(wanted, pl.Datetime):
        return given.time_zone == wanted.time_zone and given.time_unit in ("ms", "us")
    if isinstance(given, pl.List) and isinstance(wanted, pl.List):
        return _fits(given.inner, wanted.inner)  # type: ignore[arg-type]  # polars' own wide type
    return given in _TEXTS and wanted == pl.String


def _kind(given: pl.DataType) -> str:
    """A type in a message: without categories and fields, which may be made of values."""
    if isinstance(given, pl.List):
        return f"List({_kind(given.inner)})"  # type: ignore[arg-type]  # polars' own wide type
    plain = given.is_nested() or isinstance(given, pl.Enum)
    return type(given).__name__ if plain else str(given)


def _spelled(kind: pl.DataType) -> str:
    return f"pl.{kind}" if not isinstance(kind, pl.Decimal) else f"pl.Decimal({kind.precision}, {kind.scale})"


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)

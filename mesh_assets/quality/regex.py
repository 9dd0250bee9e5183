"""Regular expressions: Python's dialect, which suites are written in, as that of the Rust engine.

The two differ silently: ``$`` before a last line break, ``\\w`` and ``\\s`` on some characters, letter
case. A pattern is therefore parsed by Python's own parser and written anew, with character classes
spelt out; what cannot be said exactly is not translated.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import polars as pl

try:
    from re import _constants, _parser  # type: ignore[attr-defined]
except ImportError:  # pragma: no cover - a Python that keeps its parser elsewhere: all goes the slow way
    _constants = _parser = None

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_CLASSES = {"CATEGORY_DIGIT": r"\d", "CATEGORY_SPACE": r"\s", "CATEGORY_WORD": r"\w"}


class _Inexpressible(Exception):
    pass


@cache
def valid(pattern: str) -> str:
    """Why Python does not take ``pattern`` for a regular expression; "" if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error) or type(error).__name__
    return ""


@cache
def translated(pattern: str) -> str | None:
    """``pattern`` such that the Rust engine finds a match exactly where ``re.search`` does, or ``None``."""
    if _parser is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = _parser.parse(pattern)
        if parsed.state.flags & ~re.UNICODE:
            return None
        text = _sequence(list(parsed), last=True)
        # What Rust refuses for another reason (its size, mostly) is not translated either.
        pl.select(pl.lit("").str.contains(text))
    except (_Inexpressible, re.error, RecursionError, OverflowError, pl.exceptions.PolarsError):
        return None
    return text


def _sequence(items: Sequence[tuple[Any, Any]], *, last: bool) -> str:
    """``last``: nothing follows, so that a line break may be taken where only its presence is asked."""
    end = len(items) - 1
    return "".join(_item(op, value, last=last and index == end) for index, (op, value) in enumerate(items))


def _item(op: Any, value: Any, *, last: bool) -> str:  # noqa: ANN401 - the parser's own constants
    match str(op):
        case "LITERAL":
            return _literal(value)
        case "NOT_LITERAL":
            return f"[^{_literal(value)}]"
        case "ANY":
            return r"[^\n]"
        case "IN":
            return _class(value)
        case "AT":
            return _anchor(str(value), last=last)
        case "BRANCH":
            return "(?:" + "|".join(_sequence(list(branch), last=last) for branch in value[1]) + ")"
        case "SUBPATTERN":
            _, added, removed, inner = value
            if added or removed:
                raise _Inexpressible
            return f"(?:{_sequence(list(inner), last=last)})"
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _repeat(value, lazy=str(op) == "MIN_REPEAT")
        case _:
            raise _Inexpressible


def _literal(code: int) -> str:
    if code in _SURROGATES:
        # Text on storage never holds one.
        raise _Inexpressible
    return f"\\x{{{code:X}}}" if code > 0x7F or not chr(code).isalnum() else chr(code)


def _anchor(name: str, *, last: bool) -> str:
    if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return r"\A"
    if name == "AT_END_STRING":
        return r"\z"
    if name == "AT_END" and last:
        return r"(?:\n?\z)"
    raise _Inexpressible


def _repeat(value: tuple[int, Any, Any], *, lazy: bool) -> str:
    low, high, inner = value
    text = f"(?:{_sequence(list(inner), last=False)})"
    count = f"{{{low},{high}}}"
    if high == _constants.MAXREPEAT:
        count = {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return text + count + ("?" if lazy else "")


def _class(items: Iterable[tuple[Any, Any]]) -> str:
    text, negated = "", False
    for op, value in items:
        match str(op):
            case "NEGATE":
                negated = True
            case "LITERAL":
                text += _literal(value)
            case "RANGE":
                low, high = value
                if low in _SURROGATES or high in _SURROGATES:
                    raise _Inexpressible
                text += f"{_literal(low)}-{_literal(high)}"
            case "CATEGORY":
                text += _category(str(value))
            case _:
                raise _Inexpressible
    return f"[{'^' if negated else ''}{text}]"


def _category(name: str) -> str:
    wanted = _CLASSES.get(name.replace("_NOT_", "_"))
    if wanted is None:
        raise _Inexpressible
    return f"[{'^' if '_NOT_' in name else ''}{_members(wanted)}]"


@cache
def _members(category: str) -> str:
    """All characters of one of Python's classes, as ranges of a Rust class."""
    everything = "".join(
        map(chr, (*range(_SURROGATES.start), *range(_SURROGATES.stop, _LAST_CODE_POINT + 1)))
    )
    runs = []
    for found in re.finditer(f"{category}+", everything):
        first, last = ord(found.group()[0]), ord(found.group()[-1])
        if first < _SURROGATES.start and last >= _SURROGATES.stop:  # pragma: no cover - no class spans them
            raise _Inexpressible
        runs.append(f"\\x{{{first:X}}}-\\x{{{last:X}}}")
    return "".join(runs)

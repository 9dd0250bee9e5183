"""Great Expectations suites: the JSON files of a product's ``expectations`` folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from mesh_assets.contract.document import display
from mesh_assets.errors import ContractError, Mistake
from mesh_assets.quality.odcs import Draft, Wrong, expectation, flag, severity, short
from mesh_assets.quality.rule import Origin

FOLDER = "expectations"
_SPACE = " \t\n\r"


@dataclass(frozen=True)
class Suite:
    """One suite file.

    Attributes:
        name: the suite's name.
        path: the file.
        table: the table it names in its ``meta``, or else by its file's name.
        expectations: its entries as written, each with its line.
    """

    name: str
    path: Path
    table: str
    expectations: tuple[tuple[Mapping[str, Any], int], ...]
    table_line: int = 1


def files(folder: Path) -> list[Path]:
    """The suite files of a product's folder."""
    return sorted((folder / FOLDER).glob("*.json")) if (folder / FOLDER).is_dir() else []


def read(path: Path) -> Suite:
    """Read a suite as Great Expectations writes it, now (1.x) or earlier.

    Raises:
        ContractError: naming file and line, if it is no suite.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(path, error.lineno, f"not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise _broken(path, 1, "the file is not UTF-8") from None
    except OSError as error:
        raise _broken(path, 1, f"the file cannot be read: {error.strerror}") from error
    if not isinstance(content, dict) or not isinstance(content.get("expectations"), list):
        raise _broken(path, 1, "no suite: a mapping with a list of 'expectations' is needed")
    lines = _Lines(text)
    entries: list[tuple[Mapping[str, Any], int]] = []
    for index, entry in enumerate(content["expectations"]):
        line = lines.of(("expectations", index))
        if not isinstance(entry, dict):
            raise _broken(path, line, "an expectation must be a mapping with 'type' and 'kwargs'")
        entries.append((entry, line))
    meta = content.get("meta")
    named = meta.get("table") if isinstance(meta, dict) else None
    table = named if isinstance(named, str) else path.stem
    name = content.get("name") or content.get("expectation_suite_name") or path.stem
    at = ("meta", "table") if isinstance(named, str) else ()
    return Suite(str(name), path, table, tuple(entries), lines.of(at))


def draft(entry: Mapping[str, Any], line: int) -> Draft:
    """One expectation of a suite.

    Raises:
        Wrong: if it cannot be.
    """
    type = entry.get("type") or entry.get("expectation_type")
    kwargs = entry.get("kwargs", {})
    if not isinstance(type, str):
        raise Wrong("an expectation needs a 'type'")
    if not isinstance(kwargs, Mapping):
        raise Wrong("'kwargs' must be a mapping of arguments")
    written = entry.get("meta")
    meta: Mapping[str, Any] = written if isinstance(written, Mapping) else {}
    check, columns = expectation(type, kwargs)
    label = "_".join([*columns, short(type)]) if columns else short(type)
    return Draft(
        name=str(meta.get("name") or label).replace(" ", "_"),
        check=check,
        columns=columns,
        severity=severity(entry.get("severity") or meta.get("severity")),
        blocking=flag(meta.get("blocking")),
        origin=Origin.SUITE,
        dimension=str(meta.get("dimension", "")),
        description=" ".join(str(entry.get("description") or meta.get("description") or "").split()),
        line=line,
        named=bool(meta.get("name")),
    )


def _broken(path: Path, line: int, message: str) -> ContractError:
    return ContractError.of(display(path), [Mistake(line, message)])


class _Lines:
    """The line of each value of a JSON text, by its location."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[tuple[str | int, ...], int] = {}
        self._decoder = json.JSONDecoder()
        self._value(self._skip(0), ())

    def of(self, location: tuple[str | int, ...]) -> int:
        """The line (from 1) of a location, 1 if there is no such."""
        return self._found.get(location, 1)

    def _skip(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in _SPACE:
            at += 1
        return at

    def _value(self, at: int, location: tuple[str | int, ...]) -> int:
        """Note the value that starts at ``at``; returns where it ends. The text is known to be JSON."""
        self._found[location] = self._text.count("\n", 0, at) + 1
        opening = self._text[at]
        if opening not in "{[" or len(location) > 2:
            return int(self._decoder.raw_decode(self._text, at)[1])
        closing = "}" if opening == "{" else "]"
        at = self._skip(at + 1)
        index = 0
        while self._text[at] != closing:
            step: str | int = index
            if opening == "{":
                step, at = scanstring(self._text, at + 1, True)
                at = self._skip(self._skip(at) + 1)
            at = self._skip(self._value(at, (*location, step)))
            index += 1
            if self._text[at] == ",":
                at = self._skip(at + 1)
        return at + 1

"""A YAML file as plain values, with the line of every one of them.

Differences to ``yaml.safe_load``: a key given twice is a mistake; dates stay text, and so do the
words that only YAML 1.1 takes for booleans (``no``, ``on``) and numbers (``12:30``, ``007``).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from mesh_assets.errors import ContractError, Mistake

Location = tuple[str | int, ...]
"""Where a value is in a document: keys and list indexes from the root."""

_NODE_LIMIT = 100_000
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_IMPLICIT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp", "value")}


@dataclass
class Document:
    """One parsed file.

    Attributes:
        path: the file.
        data: its content as dicts, lists and scalars; ``None`` when it is empty.
        lines: the line (from 1) of each location: for a dict's entry that of its key.
        mistakes: what was found wrong so far; the checks of all layers add to it.
    """

    path: Path
    data: Any
    lines: dict[Location, int]
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The path as messages show it: relative to the working directory if it is below it."""
        return display(self.path)

    def line(self, location: Location) -> int:
        """The line of a location, or of the nearest enclosing one that exists."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def add(
        self,
        location: Location,
        message: str,
        *,
        allowed: Iterable[str] = (),
        given: str = "",
        hint: str = "",
    ) -> None:
        """Note a mistake at a location.

        Args:
            location: where; its line is reported.
            message: what is wrong.
            allowed: what would be right, if that can be listed.
            given: what was written instead: the nearest allowed value becomes the hint.
            hint: what to do, if there is nothing near.
        """
        choices = tuple(allowed)
        near = get_close_matches(given, choices, n=1) or [
            choice for choice in choices if choice.casefold() == given.casefold()
        ]
        self.mistakes.append(
            Mistake(self.line(location), message, choices, f"did you mean {near[0]!r}?" if near else hint)
        )

    def require_no_mistake(self) -> None:
        """Raise one error for all mistakes noted so far.

        Raises:
            ContractError: if there is any.
        """
        if self.mistakes:
            raise ContractError.of(self.file, self.mistakes)


def display(path: Path) -> str:
    """A path as messages show it."""
    absolute = path.absolute()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)


def read(path: Path) -> Document:
    """Parse a YAML file.

    Raises:
        ContractError: if the file is missing or unreadable, is not UTF-8 or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _broken(path, 1, "the file is missing", "create it") from None
    except OSError as error:
        raise _broken(path, 1, f"the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _broken(path, line, "the file is not UTF-8", "save it with that encoding") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Document:
    """Parse YAML text; ``path`` is only named in messages.

    Raises:
        ContractError: if the text is not YAML.
    """
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "end of stream" in (error.problem or "") and error.context_mark:
            # What was never closed is mended where it was opened.
            mark = error.context_mark
        context = f" {error.context}" if error.context else ""
        raise _broken(
            path, mark.line + 1 if mark else 1, f"not YAML:{context} {error.problem or 'unreadable'}".rstrip()
        ) from None
    except yaml.YAMLError as error:
        raise _broken(path, 1, f"not YAML: {' '.join(str(error).split())}") from None
    document = Document(path, None, {(): 1})
    if root is not None:
        document.data = _Builder(document).build(root, ())
    return document


def _broken(path: Path, line: int, message: str, hint: str = "") -> ContractError:
    return ContractError.of(display(path), [Mistake(line, message, (), hint)])


class _Builder:
    """Turns YAML nodes into values; a node that holds itself, or an alias bomb, is a mistake."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.node_count = 0

    def build(self, node: yaml.Node, location: Location) -> Any:  # noqa: ANN401 - any YAML value
        self.node_count += 1
        if id(node) in self.open:
            self.document.add(location, "an alias that refers to what holds it")
            return None
        if self.node_count > _NODE_LIMIT:
            self.document.require_no_mistake()
            line = node.start_mark.line + 1
            raise _broken(self.document.path, line, f"more than {_NODE_LIMIT} values in one file")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, location)
        self.open.add(id(node))
        built: Any
        if isinstance(node, yaml.SequenceNode):
            built = []
            for index, item in enumerate(node.value):
                self.document.lines[(*location, index)] = item.start_mark.line + 1
                built.append(self.build(item, (*location, index)))
        else:
            built = self.mapping(node, location)
        self.open.discard(id(node))
        return built

    def mapping(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE:
                self.document.mistakes.append(
                    Mistake(line, "a key must be a plain word", (), "write the entries out")
                )
                continue
            key = str(key_node.value)
            inner = (*location, key)
            if key in built:
                self.document.mistakes.append(
                    Mistake(line, f"{key!r} is given twice; first in line {self.document.lines[inner]}")
                )
                continue
            self.document.lines[inner] = line
            built[key] = self.build(value_node, inner)
        return built

    def scalar(self, node: yaml.ScalarNode, location: Location) -> Hashable:
        text = str(node.value)
        if node.tag == _NULL:
            return None
        if node.tag not in _IMPLICIT:
            if node.tag != _STRING:
                self.document.add(location, f"a YAML tag {node.tag!r} has no meaning here", hint="remove it")
            return text
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        if _INTEGER.match(text):
            return int(text)
        if _FLOAT.match(text):
            return float(text)
        return text


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a dict, else an empty one: checks go on past a value of a wrong type."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def mappings(value: object) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The dicts of a list, with their indexes."""
    for index, item in enumerate(sequence(value)):
        if isinstance(item, dict):
            yield index, item


def text(value: object) -> str:
    """The value if it is text, else an empty one."""
    return value if isinstance(value, str) else ""

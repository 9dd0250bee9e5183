"""Checks a document's fields and their types against a pydantic model, with lines.

Pydantic's own errors would do for types, but it ignores unknown fields where a model does not
forbid them, names every branch of a union, and knows no lines.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from mesh_assets.contract.document import Document, Location, mapping, sequence

_NOUNS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def check(
    document: Document, model: type[BaseModel], nouns: Mapping[str, str], location: Location = ()
) -> None:
    """Note every unknown field and every value of a wrong type below a location.

    Args:
        document: the parsed file; mistakes are noted in it.
        model: what the value at ``location`` should be.
        nouns: class name of a nested model -> what messages call it.
        location: where to start.
    """
    value = document.data
    for step in location:
        value = value[step]
    _Walk(document, nouns).value(value, model, location)


class _Walk:
    def __init__(self, document: Document, nouns: Mapping[str, str]) -> None:
        self.document = document
        self.nouns = nouns

    def value(self, value: object, annotation: Any, location: Location) -> None:  # noqa: ANN401
        if annotation is Any or (value is None and location):
            return
        origin = get_origin(annotation)
        if origin is Literal:
            choices = get_args(annotation)
            if value not in choices:
                name = f"{location[-1]} " if location else ""
                self.document.add(
                    location, f"{name}{_shown(value)} is unknown", allowed=map(str, choices), given=str(value)
                )
        elif origin in (Union, types.UnionType):
            branches = [branch for branch in get_args(annotation) if branch is not type(None)]
            fitting = [branch for branch in branches if _fits(value, branch)]
            if fitting:
                self.value(value, fitting[0], location)
            else:
                nouns = dict.fromkeys(self.noun(branch) for branch in branches)
                self.wrong(value, " or ".join(nouns), location)
        elif not _fits(value, annotation):
            self.wrong(value, self.noun(annotation), location)
        elif origin is list:
            (inner,) = get_args(annotation)
            for index, item in enumerate(sequence(value)):
                if item is None and inner is not Any:
                    self.document.add((*location, index), "an empty list entry", hint="fill or remove it")
                self.value(item, inner, (*location, index))
        elif origin is dict:
            inner = get_args(annotation)[1]
            for key, item in mapping(value).items():
                self.value(item, inner, (*location, key))
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            self.fields(mapping(value), annotation, location)

    def fields(self, value: Mapping[str, Any], model: type[BaseModel], location: Location) -> None:
        # A model that names a later class keeps a forward reference until it is rebuilt.
        model.model_rebuild()
        known = {field.alias or name: field for name, field in model.model_fields.items()}
        for key, item in value.items():
            field = known.get(key)
            if field is None:
                self.document.add(
                    (*location, key),
                    f"{self.noun(model)} has no field {key!r}",
                    allowed=sorted(known),
                    given=key,
                )
                continue
            self.value(item, field.annotation, (*location, key))
        for key, field in known.items():
            if field.is_required() and value.get(key) is None:
                self.document.add(location, f"{self.noun(model)} needs the field {key!r}")

    def noun(self, annotation: Any) -> str:  # noqa: ANN401 - a type or a generic alias
        origin = get_origin(annotation)
        if origin is list:
            return "a list"
        if origin is dict:
            return "a mapping"
        if annotation in _NOUNS:
            return _NOUNS[annotation]
        return self.nouns.get(annotation.__name__, f"a mapping ({annotation.__name__})")

    def wrong(self, value: object, expected: str, location: Location) -> None:
        name = "the file"
        if location:
            last = location[-1]
            name = repr(last) if isinstance(last, str) else f"entry {last + 1} of {location[-2]!r}"
        hint = ""
        if isinstance(value, bool | int | float) and "text" in expected:
            hint = "put it in quotes"
        self.document.add(location, f"{name} must be {expected}, not {_shown(value)}", hint=hint)


def _fits(value: object, annotation: Any) -> bool:  # noqa: ANN401 - a type or a generic alias
    if annotation is Any:
        return True
    origin = get_origin(annotation)
    if origin is list:
        return isinstance(value, list)
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return isinstance(value, dict)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return f"the number {value}" if isinstance(value, int | float) else repr(value)

"""Looks into a transform without data: which columns it reads, and which it makes.

It is code of a domain team, so it is called in a process of its own, with frames of no rows, and
may not take long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from mesh_assets.contract.definition import EXACT_SUFFIX, TRANSFORM_FUNCTION
from mesh_assets.contract.discovery import Product
from mesh_assets.contract.model import ColumnContract, TableContract

MAX_SECONDS = 30.0


@dataclass(frozen=True)
class Inspection:
    """What a transform's query plans tell.

    Attributes:
        reads: input -> the columns that decide on values or rows of the output, sorted.
        makes: table -> column -> its polars type.
        differs: table -> column -> polars type that the contract asks for, where it is another one.
        error: why it could not be looked into; "" if it could.
    """

    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    makes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    differs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    error: str = ""


def inspect(
    product: Product, inputs: Mapping[str, TableContract], *, max_seconds: float = MAX_SECONDS
) -> Inspection:
    """Look into the transform of a derived product.

    Args:
        product: a derived product.
        inputs: the table of each of its inputs, by the input's name.
        max_seconds: how long that may take.
    """
    import polars as pl
    import pyarrow as pa

    try:
        request = _request(product, inputs)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        return Inspection(error=f"its inputs or tables have no schema: {error}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mesh_assets.inspector"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=max_seconds,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Inspection(error=f"it did not return its query plan within {max_seconds:g} s")
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return Inspection(error=f"its process failed: {error}")
    if "error" in answer:
        return Inspection(error=answer["error"])
    reads = {
        name: _columns(columns, {column.name for column in inputs[name].columns})
        for name, columns in answer["reads"].items()
    }
    promised = {table.name: {column.name for column in table.columns} for table in product.contract.tables}
    makes = {
        table: {name: kind for name, kind in made.items() if not _is_text(name, promised.get(table, set()))}
        for table, made in answer["makes"].items()
    }
    return Inspection(reads, makes, answer["differs"])


def _request(product: Product, inputs: Mapping[str, TableContract]) -> dict[str, Any]:
    default = product.contract.default_table
    texts = {
        one.name: [(name + EXACT_SUFFIX, "string", "text") for name in one.exact]
        for one in product.definition.inputs
    }
    return {
        "transform": str(product.definition.transform),
        "function": TRANSFORM_FUNCTION,
        "inputs": {name: _schema(_plain(table) + texts.get(name, [])) for name, table in inputs.items()},
        "tables": {table.name: _schema(_plain(table)) for table in product.contract.tables},
        "table": default.name if default else "result",
    }


def _columns(names: Sequence[str], known: Set[str]) -> tuple[str, ...]:
    """The columns that these are, or are the texts of."""
    return tuple(
        sorted({name.removesuffix(EXACT_SUFFIX) if _is_text(name, known) else name for name in names})
    )


def _is_text(name: str, known: Set[str]) -> bool:
    """Whether it stands for texts of one of the columns known, and is none itself."""
    return name not in known and name.removesuffix(EXACT_SUFFIX) in known


def _plain(table: TableContract) -> list[tuple[str, str, str]]:
    return [(column.name, column.logical_type, column.physical_type) for column in table.columns]


def _schema(columns: list[tuple[str, str, str]]) -> str:
    import polars as pl
    import pyarrow as pa

    from mesh_assets.contract.arrow import arrow_type
    from mesh_assets.inspector import encoded

    fields = [
        (name, arrow_type(ColumnContract(name, logical_type, physical_type)) or pa.string())
        for name, logical_type, physical_type in columns
    ]
    empty = pl.from_arrow(pa.schema(fields).empty_table())
    assert isinstance(empty, pl.DataFrame)
    return encoded(empty.schema)

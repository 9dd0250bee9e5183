"""A product folder with the quality rules that a test is about."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

from mesh_assets.contract.loader import load
from mesh_assets.contract.model import Contract

HEAD = """\
apiVersion: v3.1.0
kind: DataContract
id: sales.things
name: things
version: 1.0.0
status: active
domain: sales
team:
  name: sales
schema:
  - name: things
    physicalName: shop.things
{table}
    properties:
      - name: id
        logicalType: integer
        physicalType: bigint
        primaryKey: true
      - name: name
        logicalType: string
        physicalType: text
{name}
      - name: amount
        logicalType: number
        physicalType: numeric(10,2)
{amount}
      - name: at
        logicalType: timestamp
        physicalType: timestamptz
      - name: tags
        logicalType: array
        physicalType: text[]
        items: {{logicalType: string}}
{tags}
"""


def contract(folder: Path, *, table: str = "", name: str = "", amount: str = "", tags: str = "") -> Contract:
    """A contract of one table ``things``; YAML of rules and options goes to the table or a column."""
    parts = {"name": name, "amount": amount, "tags": tags}
    deep = {column: indent(dedent(text).strip("\n"), " " * 8) for column, text in parts.items()}
    path = folder / "contract.yaml"
    path.write_text(HEAD.format(table=indent(dedent(table).strip("\n"), " " * 4), **deep), encoding="utf-8")
    return load(path)

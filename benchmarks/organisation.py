"""The benchmarks' own small mesh: one domain, one source, one product over one table."""

from __future__ import annotations

import os
from pathlib import Path

from mesh_assets.settings import Settings

DOMAIN, SOURCE, PRODUCT = "sales", "app", "sales.orders"

_DOMAIN_FILE = """\
type: mesh_assets.orchestration.Domain
attributes:
  description: The benchmarks' only domain.
  owner: team:sales
  sources:
    app:
      kind: postgres
      description: The benchmarks' source.
"""
_PRODUCT_FILE = """\
type: mesh_assets.orchestration.DataProduct
attributes:
  source: app
"""
_CONTRACT_FILE = """\
apiVersion: v3.1.0
kind: DataContract
id: benchmark.orders
name: orders
version: 1.0.0
status: active
domain: sales
description:
  purpose: Orders that are written as fast as they can be read.
team:
  name: sales
  members:
    - username: owner@mesh.example
      role: data owner
schema:
  - name: orders
    physicalName: shop.orders
    physicalType: table
    logicalType: object
    description: One order.
    properties:
      - {name: order_id, logicalType: integer, physicalType: bigint, required: true,
         primaryKey: true, primaryKeyPosition: 1, description: Its number.}
      - {name: customer_id, logicalType: integer, physicalType: bigint, required: true,
         description: Who ordered.}
      - {name: status, logicalType: string, physicalType: text, required: true, description: Its state.}
      - {name: currency, logicalType: string, physicalType: character(3), required: true,
         description: Of the amount.}
      - {name: amount, logicalType: number, physicalType: "numeric(14,2)", required: true,
         description: What it costs.}
      - {name: note, logicalType: string, physicalType: text, description: What the customer wrote.}
      - {name: updated_at, logicalType: timestamp, physicalType: timestamp with time zone, required: true,
         description: When it last changed.}
"""


def write_organisation(folder: Path, url: str) -> None:
    """Write products and the source's address below ``folder``."""
    product = folder / "products" / "sales" / "orders"
    product.mkdir(parents=True)
    (product.parent / "defs.yaml").write_text(_DOMAIN_FILE)
    (product / "defs.yaml").write_text(_PRODUCT_FILE)
    (product / "contract.yaml").write_text(_CONTRACT_FILE)
    file = settings_of(folder).source_file(DOMAIN, SOURCE)
    file.parent.mkdir(parents=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        stream.write(url)


def settings_of(folder: Path, products: Path | None = None) -> Settings:
    """The settings of the mesh that was written to ``folder``, whatever the environment says."""
    return Settings(
        home=folder / "home",
        lake=str(folder / "home" / "lake"),
        products=products or folder / "products",
        dagster_postgres_url="",
    )

"""Data contracts: what products promise (ODCS), and how domains and products are defined.

Pure: reads YAML, touches neither the lake nor a source, and loads no Dagster.
"""

from __future__ import annotations

from mesh_assets.contract.definition import (
    DomainDefinition,
    InputDefinition,
    Limits,
    ProductDefinition,
    SourceDefinition,
    Through,
    load_domain,
    load_product,
)
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.loader import load
from mesh_assets.contract.model import ColumnContract, Contract, QualityRule, SlaProperty, TableContract

__all__ = [
    "ColumnContract",
    "Contract",
    "Discovery",
    "DomainDefinition",
    "InputDefinition",
    "Limits",
    "Product",
    "ProductDefinition",
    "QualityRule",
    "SlaProperty",
    "SourceDefinition",
    "TableContract",
    "Through",
    "discover",
    "load",
    "load_domain",
    "load_product",
]

"""Names for the shell to complete, read from the products' folders without loading the program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent.parent


def domains(incomplete: str) -> list[str]:
    """Domains that begin like this."""
    return sorted({folder.parent.name for folder in _products() if folder.parent.name.startswith(incomplete)})


def names(incomplete: str) -> list[str]:
    """Products that begin like this; once a product is written out, its tables too."""
    found = []
    for folder in _products():
        name = f"{folder.parent.name}.{folder.name}"
        if name.startswith(incomplete):
            found.append(name)
        if incomplete.startswith(f"{name}.") or incomplete == name:
            found += [table for table in _tables(name, folder) if table.startswith(incomplete)]
    return sorted(found)


def selectors(incomplete: str) -> list[str]:
    """Domains, products and tables that begin like this."""
    return [*domains(incomplete), *names(incomplete)] if "." not in incomplete else names(incomplete)


def nodes(incomplete: str) -> list[str]:
    """Products, tables and columns that begin like this."""
    found = names(incomplete)
    for folder in _products():
        product = f"{folder.parent.name}.{folder.name}"
        if not incomplete.startswith(f"{product}."):
            continue
        tables = _columns(folder)
        default = tables.get(folder.name) or (next(iter(tables.values())) if len(tables) == 1 else [])
        found += [f"{product}.{column}" for column in default]
        found += [f"{product}.{name}.{column}" for name, columns in tables.items() for column in columns]
    return sorted({name for name in found if name.startswith(incomplete)})


def facets(incomplete: str) -> list[str]:
    """``facet=value`` texts that begin like this, as far as their values are known without looking."""
    values = {
        "kind": ["product", "table", "column", "change"],
        "domain": domains(""),
        "product": [f"{folder.parent.name}.{folder.name}" for folder in _products()],
        "classification": ["public", "internal", "confidential", "restricted"],
        "owner": [],
        "tag": [],
        "status": ["proposed", "draft", "active", "deprecated", "retired"],
    }
    known = [f"{name}={value}" for name, own in values.items() for value in own or [""]]
    return [text for text in known if text.startswith(incomplete)]


def _products() -> Iterator[Path]:
    root = Path(os.environ.get("MESH_PRODUCTS") or _PROJECT / "products")
    return (file.parent for file in sorted(root.glob("[!._]*/[!._]*/contract.yaml")))


def _tables(name: str, folder: Path) -> list[str]:
    return [f"{name}.{table}" for table in _columns(folder)]


def _columns(folder: Path) -> dict[str, list[str]]:
    """Columns by table."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        schema = yaml.load((folder / "contract.yaml").read_bytes(), Loader=loader)["schema"]
        return {table["name"]: [column["name"] for column in table["properties"]] for table in schema}
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        # A broken contract has no names to complete; `mesh validate` says what is wrong.
        return {}

"""The only place that spells keys, paths and OpenLineage names.

Names are ``domain.product[.table][.column]``; a product's default table has the product's
name and may be left out. Tables resolve before columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mesh_assets.errors import UnknownName

_PART = re.compile(r"[a-z][a-z0-9_]*\Z")
_KEPT = re.compile(r"(?P<product>.+)_v(?P<major>[1-9][0-9]*)\Z")

CHANGES = "changes"
CURRENT = "current"
HISTORY = "history"
QUARANTINE = "quarantine"


def valid_part(text: str) -> bool:
    """Whether ``text`` may name a domain, product, source or table."""
    return bool(_PART.match(text))


@dataclass(frozen=True, order=True)
class ProductName:
    """``domain.product``."""

    domain: str
    product: str

    @classmethod
    def parse(cls, text: str) -> ProductName:
        """Parse ``domain.product``.

        Raises:
            UnknownName: if the text is not of that form.
        """
        parts = text.split(".")
        if len(parts) != 2 or not all(valid_part(part) for part in parts):
            raise UnknownName(
                f"{text!r} is not a product name",
                hint="write domain.product in lower case, for example sales.orders",
            )
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.domain}.{self.product}"

    def kept_version(self, major: int) -> ProductName:
        """The product that keeps an old major version of this one beside it: ``sales.orders_v1``."""
        return ProductName(self.domain, f"{self.product}_v{major}")

    @property
    def keeps(self) -> tuple[ProductName, int] | None:
        """The product and major version that this one, by its name, keeps; None if it keeps none."""
        match = _KEPT.match(self.product)
        return (ProductName(self.domain, match["product"]), int(match["major"])) if match else None

    def asset_key(self, kind: str, table: str) -> list[str]:
        """Dagster's asset key of one table: ``[domain, product, kind, table]``."""
        return [self.domain, self.product, kind, table]


@dataclass(frozen=True)
class Layout:
    """Where things lie below a domain's lake root (a local folder or an object store's URI)."""

    root: str

    def _join(self, *parts: str) -> str:
        return "/".join([self.root.rstrip("/"), *parts])

    def product(self, name: ProductName) -> str:
        """The product's folder."""
        return self._join(name.domain, name.product)

    def table(self, name: ProductName, kind: str, table: str, generation: int = 1) -> str:
        """One Delta table of a product: ``kind`` is changes, current, history or quarantine.

        A table whose columns have come to other types, or its rows to another key, goes on in a next
        ``generation``; the one in which a version lies is in its row of the version log.
        """
        return self._join(
            name.domain, name.product, kind, table if generation == 1 else f"{table}.g{generation}"
        )

    def versions(self, name: ProductName) -> str:
        """The product's version log."""
        return self._join(name.domain, name.product, "versions")

    def source(self, domain: str, source: str, part: str) -> str:
        """A table of a source: ``part`` is ledger, parking, refusals, schemas or gaps."""
        return self._join(domain, "sources", source, part)

    def catalog(self, name: ProductName, *parts: str) -> str:
        """The product's local catalog: its record, released contracts, and the tables beside them."""
        return self._join(name.domain, name.product, "catalog", *parts)

    def lineage(self) -> str:
        """The OpenLineage event table."""
        return self._join("lineage")

    def enterprise(self, part: str) -> str:
        """A table of the enterprise catalog, such as datasets, columns, edges or changes."""
        return self._join("enterprise", part)


def local_folder(uri: str) -> Path | None:
    """The folder that a URI names, or None if it is in an object store."""
    split = urlsplit(uri)
    if split.scheme == "file":
        return Path(unquote(split.path))
    return Path(uri) if len(split.scheme) <= 1 else None


def slot_name(domain: str, source: str) -> str:
    """The replication slot of one source (at most 63 bytes, lower case)."""
    return f"mesh_{domain}_{source}"[:63]


def publication_name(domain: str, source: str) -> str:
    """The publication of one source."""
    return f"mesh_{domain}_{source}"[:63]


def lake_dataset(uri: str) -> tuple[str, str]:
    """OpenLineage ``(namespace, name)`` of a table at a storage URI.

    Source: OpenLineage naming spec, "Local file system" and "S3".
    """
    split = urlsplit(uri)
    if split.scheme in ("", "file"):
        return "file", str(Path(split.path if split.scheme else uri).absolute())
    return f"{split.scheme}://{split.netloc}", split.path.lstrip("/")


def mesh_dataset(name: ProductName, kind: str, table: str = "") -> tuple[str, str]:
    """OpenLineage ``(namespace, name)`` by which the mesh knows a table: its name, and what kind it is of.

    ``sales.orders.order_lines`` is the current table, ``sales.orders.order_lines:changes`` its log and
    ``sales.orders:versions`` the version log.
    """
    full = f"{name}.{table}" if table else str(name)
    return "mesh", full if kind == CURRENT else f"{full}:{kind}"


def postgres_dataset(host: str, port: int, database: str, schema: str, table: str) -> tuple[str, str]:
    """OpenLineage ``(namespace, name)`` of a PostgreSQL table (naming spec, "PostgreSQL")."""
    return f"postgres://{host}:{port}", f"{database}.{schema}.{table}"


def lineage_job(domain: str, source_or_product: str, kind: str) -> tuple[str, str]:
    """OpenLineage ``(namespace, name)`` of a job of ours."""
    return f"mesh.{domain}", f"{source_or_product}.{kind}"


def event_schema_id(name: ProductName, table: str) -> str:
    """``$id`` of the JSON Schema of one table's change events."""
    return f"urn:mesh:event-schema:{name.domain}:{name.product}:{table}"

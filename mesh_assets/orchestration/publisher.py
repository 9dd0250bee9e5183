"""Publishes the catalog records of a shift's products beside the shift."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from mesh_assets.names import Layout

if TYPE_CHECKING:
    from mesh_assets.contract.discovery import Product


class Publisher:
    """Writes records when they are due, in a thread of its own: each is read together from many files.

    Args:
        layout: of the lake.
        products: whose records to write.
    """

    def __init__(self, layout: Layout, products: Sequence[Product]) -> None:
        # Loads the Delta Lake library, which a code server has no need of.
        from mesh_assets.catalog.local import LocalCatalog

        self._messages: list[str] = []
        self._catalog = LocalCatalog.of(layout, products, log=self._messages.append)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalog")
        self._job: Future[bool] | None = None

    def write_if_due(self) -> list[str]:
        """Begin to write what is due; returns what went wrong since the last call."""
        if self._job is None or self._job.done():
            self._settle()
            self._job = self._pool.submit(self._catalog.write_if_due)
        return self._said()

    def finish(self) -> list[str]:
        """Write all records now; returns what went wrong since the last call."""
        self._settle()
        self._pool.shutdown(wait=True)
        self._catalog.write()
        return self._said()

    def _settle(self) -> None:
        if self._job is not None:
            self._job.result()
            self._job = None

    def _said(self) -> list[str]:
        said = self._messages[:]
        del self._messages[: len(said)]
        return said

"""Publishes the catalog records of a shift's products beside the shift, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from mesh_assets.catalog.local import PUBLISH_SECONDS, LocalCatalog
from mesh_assets.contract.discovery import Product
from mesh_assets.names import Layout


class Publisher:
    """Writes records when they are due, in a thread of its own: each is read together from many files.

    Args:
        layout: of the lake.
        products: whose records to write.
        publish_seconds: the least time between two publications.
        clock: tells the time by which that is, in seconds.

    Attributes:
        messages: what went wrong; whoever reads them takes them out.
    """

    def __init__(
        self,
        layout: Layout,
        products: Iterable[Product],
        *,
        publish_seconds: float = PUBLISH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.messages: list[str] = []
        self._catalog = LocalCatalog.of(
            layout, products, log=self.messages.append, publish_seconds=publish_seconds, clock=clock
        )
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalog")
        self._job: Future[bool] | None = None
        self._changed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)

    def changed(self) -> None:
        """Something is to be told: a product has a new version."""
        self._changed = True

    def write_if_due(self) -> None:
        """Begin to write what has changed or failed, unless that was tried a short time ago; called often."""
        if self._job is not None:
            if not self._job.done():
                return
            self._settle()
        if (self._changed or self._catalog.failed) and self._catalog.due:
            self._job = self._pool.submit(self._catalog.write, failed_only=not self._changed)
            self._changed = False

    def finish(self) -> None:
        """Write all records as they are at the end of the shift."""
        self._settle()
        self._pool.submit(self._catalog.write).result()

    def _settle(self) -> None:
        """Wait for what is under way; a fault of the program itself is raised here."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

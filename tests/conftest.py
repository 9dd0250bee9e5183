"""Fixtures shared by all tests: one embedded PostgreSQL per test process, a fresh database per test.

And their order: files with slow tests come last, and whole meshes run in one test process one after the
other, the other processes having the rest, since two of them side by side on a small machine take more
than twice as long.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from mesh_assets.local.postgres import Cluster

_SHOWN_CHARACTERS = 2000
_WHOLE_MESHES = tuple(f"tests/local/test_{name}.py" for name in ("derived", "evolution", "relay", "up"))
_database_numbers = count(1)


class OneMesh(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out files, those with whole meshes as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        return "whole meshes" if nodeid.startswith(_WHOLE_MESHES) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """For ``--dist loadfile``."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return OneMesh(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast files first, then whole meshes, which take longest, then the other slow ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[bool, bool]:
        whole = item.nodeid.startswith(_WHOLE_MESHES)
        return whole or item.path in slow, not whole

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of what a failing test has printed, show the end: whoever reads all of it also reads the traceback."""
    report = yield
    report.sections = [(title, text[-_SHOWN_CHARACTERS:]) for title, text in report.sections]
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A running cluster with ``wal_level=logical``; tests must not stop it (make one of their own)."""
    # Not pytest's own temporary folder: it is private to root, and PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="mesh-postgres-"))
    folder.chmod(0o711)
    cluster = Cluster(
        folder / "cluster",
        shared_buffers_mb=32,
        # A killed server loses nothing by this: only a crash of the machine would.
        options={
            "fsync": "off",
            "full_page_writes": "off",
            "max_wal_senders": "40",
            "max_replication_slots": "40",
        },
    )
    try:
        yield cluster.start()
    finally:
        cluster.remove()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url(postgres: Cluster) -> str:
    """The superuser's URL of the cluster's ``postgres`` database."""
    return postgres.url()


@pytest.fixture
def database_url(postgres: Cluster) -> Iterator[str]:
    """The superuser's URL of a fresh database; dropped afterwards with its slots and connections."""
    name = f"test_{next(_database_numbers)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)

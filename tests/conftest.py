"""Fixtures shared by all tests: one embedded PostgreSQL per test process, a fresh database per test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from mesh_assets.local.postgres import Cluster

_database_numbers = count(1)


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

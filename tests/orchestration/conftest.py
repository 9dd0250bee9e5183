"""Fixtures of the Dagster layer: a products folder to break, and an instance on real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mesh_assets.orchestration.storage import storage_url

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's products folder, in force for this test."""
    copy = tmp_path / "products"
    shutil.copytree(PROJECT / "products", copy)
    monkeypatch.setenv("MESH_PRODUCTS", str(copy))
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    return copy


@pytest.fixture
def instance(database_url: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance whose storage is a fresh PostgreSQL database."""
    overrides = {
        "storage": {"postgres": {"postgres_url": storage_url(database_url)}},
        "telemetry": {"enabled": False},
    }
    with dg.instance_for_test(overrides=overrides, temp_dir=str(tmp_path)) as found:
        yield found

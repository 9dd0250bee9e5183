"""No password leaves by lineage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mesh_assets.errors import MeshError
from mesh_assets.ingest.shift import Shift
from mesh_assets.lineage import facet
from mesh_assets.lineage.event import LineageRun, to_json
from mesh_assets.lineage.secret import redacted
from mesh_assets.lineage.store import read
from mesh_assets.shift.report import Budget, Silent
from tests.crash.world import World

SECRETS = [
    "postgresql://bob:hunter2@db:5432/shop is gone",
    "postgresql://bob:hun@ter/hunter2@db:5432/shop is gone",
    "https://hunter2@github.com/org/repo.git",
    "host=db password='hunter2' user=bob",
    "PGPASSWORD=hunter2",
    '{"apiKey": "hunter2", "x": 1}',
    "Authorization: Bearer hunter2.hunter2",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=hunter2&a=1",
    "AZURE_STORAGE_ACCOUNT_KEY: hunter2",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_hidden(text: str) -> None:
    assert "hunter2" not in redacted(text)
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    ["file:///lake/orders", "postgres://db:5432/shop", "team:sales", "write to a@b.example", "12:30:00"],
)
def test_the_rest_stays(text: str) -> None:
    assert redacted(text) == text


def test_errors_and_addresses_are_told_without_them(tmp_path: Path) -> None:
    run = LineageRun("mesh.sales", "app.capture", "CAPTURE")
    error = MeshError(SECRETS[0], hint=SECRETS[3])
    assert "hunter2" not in to_json(run.fail(error))
    assert (
        facet.data_source("sales.app", "postgresql://bob:hunter2@db/shop").uri
        == "postgresql://bob:***@db/shop"
    )
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text('[remote "origin"]\n\turl = https://bob:hunter2@github.com/org/repo.git\n')
    located = facet.code_location(tmp_path / "transform.py")
    assert (located.url, located.branch, located.path) == (
        "https://bob:***@github.com/org/repo.git",
        "main",
        "transform.py",
    )


def test_a_shift_tells_nobody_the_source_s_password(world: World) -> None:
    """Neither when it works nor when the server refuses it."""
    messages: list[str] = []

    class Listening(Silent):
        def message(self, text: str) -> None:
            messages.append(text)

    Shift(world.plan, budget=Budget(idle_seconds=0.1), observer=Listening()).run()
    scheme, _, rest = world.plan.source.url.partition("://")
    _, _, address = rest.rpartition("@")
    url = f"{scheme}://nobody:hunter2@{address}"
    refused = replace(world.plan, source=replace(world.plan.source, url=url))
    with pytest.raises(MeshError):
        Shift(refused, budget=Budget(idle_seconds=0.1), observer=Listening()).run()
    events = read(world.plan.layout.lineage()).collect()["event"].to_list()
    assert any(json.loads(event)["eventType"] == "FAIL" for event in events)
    password = rest.partition("@")[0].partition(":")[2]
    for text in (*events, *messages):
        assert "hunter2" not in text
        assert not password or f":{password}@" not in text

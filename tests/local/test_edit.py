"""What was edited, told by the code locations that are made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh_assets.local import instance
from mesh_assets.local.edit import Edits
from mesh_assets.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]

# pytest puts its own filters in place of the program's: what Dagster warns of itself is ignored again.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]


def test_an_edit_is_told_once_to_whoever_is_made_of_it(tmp_path: Path) -> None:
    products = tmp_path / "products"
    shutil.copytree(PROJECT / "products", products)
    locations = instance.locations(instance.project_file(Settings(), "workspace.yaml"))
    edits = Edits(products, locations)
    assert edits.changed() == []
    transform = products / "finance" / "revenue" / "transform.py"
    transform.write_text(transform.read_text() + "\n# another\n")
    # A product of sales is made of one of finance, none of distribution is.
    assert edits.changed() == ["sales", "finance", "enterprise"]
    assert edits.changed() == []

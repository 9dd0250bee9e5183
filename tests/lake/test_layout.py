"""The layout's format number: kept, checked, refused when newer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh_assets.errors import LakeError, LayoutUnknown
from mesh_assets.lake.layout import FORMAT, ensure_layout


def test_a_new_root_gets_the_format(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "lake"
    assert ensure_layout(str(root)) == FORMAT
    assert json.loads((root / "layout.json").read_text()) == {"format": FORMAT}
    assert ensure_layout(str(root)) == FORMAT


def test_a_newer_format_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_text(json.dumps({"format": FORMAT + 1, "more": "things"}))
    with pytest.raises(LayoutUnknown, match="update the program"):
        ensure_layout(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", '{"format": "x"}', "{}"])
def test_a_damaged_file_is_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.json").write_text(text)
    with pytest.raises(LakeError, match="damaged"):
        ensure_layout(str(tmp_path))
    assert (tmp_path / "layout.json").read_text() == text

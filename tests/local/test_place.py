"""The folder of one installation: one mesh has it, also beside a reset."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from mesh_assets.local.place import Place
from mesh_assets.local.removal import Removal
from mesh_assets.local.teardown import reset
from mesh_assets.settings import Settings


def test_one_process_holds_an_installation(tmp_path: Path) -> None:
    place = Place(tmp_path / "home")
    with place.locked() as mine, place.locked() as another:
        assert (mine, another) == (True, False)
    with place.locked() as mine:
        assert mine


def test_a_lock_that_a_reset_removes_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home")
    place, flock = Place.of(settings), fcntl.flock

    def late(file: int, operation: int) -> None:
        # It has been opened already.
        monkeypatch.undo()
        reset(settings, Removal(settings.home, None, (), ()))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with place.locked() as removed, place.locked() as anew:
        assert (removed, anew) == (False, True)


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name: f"MESH_{name.upper()}" for name in Settings.model_fields}
    for variable in names.values():
        monkeypatch.delenv(variable, raising=False)
    default = Settings()
    for variable in names.values():
        monkeypatch.setenv(variable, "")
    assert Settings() == default

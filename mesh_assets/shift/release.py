"""What a shift does about contracts that changed: whether they may hold, their release, and old versions.

A contract that takes back what was promised holds only with a higher major version. Then those who
still read the old one are not left without: before the first data of the new version is made, the old
one gets a folder of its own (:mod:`mesh_assets.contract.keeping`), with a note for whom. It goes when
nobody reads it any more; what it held stays in the lake.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mesh_assets.catalog.releases import Releases
from mesh_assets.contract import compatibility
from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.contract.document import display
from mesh_assets.contract.keeping import files_of, folder_files, kept_name
from mesh_assets.contract.kept import KEPT_FILE, Kept
from mesh_assets.contract.model import Contract
from mesh_assets.contract.support import version_readers
from mesh_assets.errors import ContractError
from mesh_assets.names import Layout, ProductName
from mesh_assets.readers import unnamed_readers

_NEW, _GONE = ".new", ".gone"


def check_release(
    layout: Layout, contract: Contract, readers: compatibility.Readers
) -> dict[str, ContractError]:
    """The tables of a contract that break what was released although its major version is the same.

    Args:
        layout: of the lake.
        contract: what is to hold from now on.
        readers: who reads what of the product.

    Returns:
        Table -> why it is refused, naming every break and whom it would hurt. What is broken of the
        contract as a whole refuses all of its tables.
    """
    released = Releases(layout.catalog(contract.name)).latest()
    if released is None or released.hash == contract.hash:
        return {}
    changes = compatibility.compare(released, contract, readers)
    tables = [table.name for table in contract.tables]
    whole = [change for change in changes if change.table not in tables]
    refused: dict[str, ContractError] = {}
    for table in tables:
        mine = [*whole, *(change for change in changes if change.table == table)]
        if refusal := compatibility.refusal(released, contract, mine):
            refused[table] = refusal
    return refused


def record_release(layout: Layout, product: Product, code_hash: str = "") -> str | None:
    """Keep the contract under which a product's first version of a shift was made, and what made it.

    Args:
        layout: of the lake.
        product: as the shift runs it.
        code_hash: of what a derived product was made by; its folder may hold something else by now.

    Returns:
        What somebody should know; None if there is nothing.
    """
    releases, contract = Releases(layout.catalog(product.name)), product.contract
    held = releases.at(contract.version)
    if held is None:
        releases.record(contract)
    files: dict[str, bytes] | None = None
    # Its folder may be gone by now.
    with suppress(ContractError, FileNotFoundError):
        if product.code_hash == code_hash:
            files = folder_files(product.folder)
    if files is not None:
        releases.record_made_by(contract.version, files)
    if held is None or held.contract.hash == contract.hash:
        return None
    return (
        f"{product.name}: the contract is not what was released as version {contract.version}; "
        "raise the version, so that consumers see the change"
    )


# -- old versions ------------------------------------------------------------------------------------


def keep_old_versions(layout: Layout, product: Product) -> list[str]:
    """Keep the old major versions of a product that somebody reads, and let those go that nobody does.

    Returns:
        What was done.

    Raises:
        ContractError: if somebody reads an old version and it cannot be kept.
    """
    contract = product.contract
    if product.name.keeps:
        return []
    releases = Releases(layout.catalog(product.name))
    older = {
        name: one.contract
        for one in releases.all()
        if compatibility.raised(one.contract, contract) and (name := kept_name(one.contract)) is not None
    }
    if not older:
        return []
    root = product.folder.absolute().parent.parent
    discovery = discover(root)
    latest = releases.latest()
    done: list[str] = []
    for name, old in older.items():
        folder = root / name.domain / name.product
        if name in discovery.kept:
            if not version_readers(discovery, name) and _surely(discovery, folder):
                done += _let_go(folder, name, discovery.kept[name])
        elif not folder.exists() and not old.ended:
            # Only at the change itself do those who name no version read what they were written for.
            readers = unnamed_readers(discovery, old, contract) if old == latest else {}
            pinned = version_readers(discovery, name)
            if readers or pinned:
                _keep(folder, releases, old, product, readers)
                who = ", ".join(map(str, sorted({*readers, *pinned})))
                done.append(
                    f"{name}: version {old.version} of {product.name} stays beside {contract.version} in "
                    f"{display(folder)}, for {who}"
                )
    return done


def _surely(discovery: Discovery, folder: Path) -> bool:
    """Whether all products that may read it could be read themselves."""
    known = {one.folder for one in discovery.refused.values()}
    return all(broken == folder or broken in known for broken, _ in discovery.broken)


def _keep(
    folder: Path,
    releases: Releases,
    old: Contract,
    product: Product,
    readers: Mapping[ProductName, str],
) -> None:
    """Make the folder, whole or not at all.

    Raises:
        ContractError: if it cannot be made.
    """
    files = files_of(old, releases.made_by(old.version) or {}, derived=product.derived, now=product.contract)
    draft = folder.with_name(f".{folder.name}{_NEW}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        for path, data in {**files, KEPT_FILE: Kept.of(files, readers).to_json()}.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_bytes(data)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if folder.exists():
            # Somebody else made it meanwhile.
            return
        raise ContractError(
            f"version {old.version} of {product.name} is still read, and cannot be kept: "
            f"{display(folder)} cannot be written: {error.strerror}",
            hint=f"where the products are edited, run `mesh keep {product.name} --from REVISION`, one with "
            f"{old.version}, commit {display(folder)} and deliver it; until then the changes wait",
        ) from error


def _let_go(folder: Path, name: ProductName, note: Kept) -> Iterator[str]:
    """Remove a folder that the mesh made; one that somebody edited is theirs."""
    if not note.untouched(folder):
        return
    aside = folder.with_name(f".{folder.name}{_GONE}")
    with suppress(OSError):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)
        yield f"{name}: nobody reads it any more, so it is no longer made; what it held stays in the lake"

"""The contracts that ``mesh validate`` compares with: the released ones, or those of another state."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from mesh_assets.catalog.releases import Releases
from mesh_assets.contract.discovery import Discovery, discover
from mesh_assets.contract.document import display
from mesh_assets.contract.model import Contract
from mesh_assets.errors import UnknownName
from mesh_assets.names import Layout, ProductName
from mesh_assets.settings import Settings


class Baseline(Protocol):
    """What held before."""

    def contract(self, name: ProductName) -> Contract | None:
        """The contract of a product; None if it had none.

        Raises:
            MeshError: if it cannot be read.
        """
        ...


class Released:
    """The contracts under which the lake's data was made."""

    def __init__(self, settings: Settings) -> None:
        self._layout = Layout(settings.lake_root)

    def contract(self, name: ProductName) -> Contract | None:
        """The contract released last."""
        return Releases(self._layout.catalog(name)).latest()


class Stated:
    """The contracts of another state of the products."""

    def __init__(self, discovery: Discovery) -> None:
        found = {**discovery.refused, **discovery.products}
        self._contracts = {name: product.contract for name, product in found.items()}

    def contract(self, name: ProductName) -> Contract | None:
        """The contract as it is in that state."""
        return self._contracts.get(name)


@contextmanager
def baseline(settings: Settings, against: str | None) -> Iterator[Baseline]:
    """What to compare with.

    Args:
        settings: where the lake and the products are.
        against: a products folder, or a git revision of the one there is; None: what was released.

    Raises:
        UnknownName: if it is neither.
    """
    if against is None:
        yield Released(settings)
    else:
        with stated(settings.products, against) as discovery:
            yield Stated(discovery)


@contextmanager
def stated(products: Path, state: str) -> Iterator[Discovery]:
    """Another state of the products, its files to be read only inside.

    Args:
        products: the products folder that there is.
        state: another one, or a git revision of this one.

    Raises:
        UnknownName: if it is neither.
    """
    if Path(state).is_dir():
        yield discover(state)
        return
    with TemporaryDirectory(prefix="mesh-products-") as folder:
        _extract(products, state, Path(folder))
        yield discover(folder)


def _extract(products: Path, revision: str, folder: Path) -> None:
    """Write the products folder as a git revision has it.

    Raises:
        UnknownName: if there is no such revision.
    """
    try:
        # Below a repository's root, git takes the folder that it is called in.
        done = subprocess.run(
            ["git", "-C", str(products), "archive", "--format=tar", "--end-of-options", revision, "."],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode(errors="replace").strip() if hasattr(error, "stderr") else str(error)
        raise UnknownName(
            f"{revision!r} is neither a folder nor a git revision of {display(products)}: {said}",
            hint="give another checkout's products folder, or a revision such as origin/main",
        ) from None
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        # Python before 3.11.4 has no filters; what git packs of the user's own repository is no stranger's.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safe)  # type: ignore[arg-type]

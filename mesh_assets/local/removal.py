"""What ``mesh reset`` removes outside of the home folder: its traces at other databases, and its lake.

Embedded databases go with the home folder. At a source of somebody else's a replication slot would
stay and retain WAL until the disk is full, so slot and publication are dropped there; where that is
not possible, the statements to run are named. A lake elsewhere is removed if it is one of ours.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from psycopg import sql

from mesh_assets.contract.discovery import discover
from mesh_assets.errors import MeshError
from mesh_assets.names import Layout
from mesh_assets.settings import Settings

if TYPE_CHECKING:
    from mesh_assets.cdc.source import SourceConfig

_LAYOUT_FILE = "layout.json"


@dataclass(frozen=True)
class Capture:
    """A source that is not embedded, of which the lake holds changes.

    Attributes:
        place: where it is, without password.
    """

    config: SourceConfig
    place: str

    @property
    def statements(self) -> tuple[str, ...]:
        """What removes our traces there."""
        slot = sql.Literal(self.config.slot).as_string(None)
        publication = sql.Identifier(self.config.publication).as_string(None)
        return f"SELECT pg_drop_replication_slot({slot});", f"DROP PUBLICATION IF EXISTS {publication};"

    def drop(self) -> str | None:
        """Drop slot and publication; what is left to do, and why, or None."""
        from mesh_assets.cdc.source import Source

        try:
            with Source(self.config) as source:
                source.drop_slot()
                source.drop_publication()
        except MeshError as error:
            return f"{error.message}; at {self.place} run: {' '.join(self.statements)}"
        return None


@dataclass(frozen=True)
class Removal:
    """What there is to remove.

    Attributes:
        home: the installation's folder, if it exists.
        lake: the lake's folder outside of it, if it is there and ours.
        captures: sources of others where we have a slot and a publication.
        kept: what is not removed, and why.
    """

    home: Path | None
    lake: Path | None
    captures: tuple[Capture, ...]
    kept: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing."""
        return self.home is None and self.lake is None and not self.captures

    def sentences(self) -> list[str]:
        """What will be removed, for whoever has to agree."""
        found = []
        if self.home is not None:
            found.append(f"the databases, Dagster's history and everything else in {self.home}")
        if self.lake is not None:
            found.append(f"the lake in {self.lake}")
        return found + [
            f"replication slot and publication {one.config.slot} at {one.place}" for one in self.captures
        ]

    def carry_out(self) -> tuple[str, ...]:
        """Remove what is outside of the home folder; what is left to be done by hand."""
        left = [problem for one in self.captures if (problem := one.drop()) is not None]
        if self.lake is not None:
            shutil.rmtree(self.lake)
        return (*left, *self.kept)


def removal(settings: Settings) -> Removal:
    """What ``mesh reset`` would remove now."""
    home = settings.home.absolute()
    kept: list[str] = []
    lake = _lake(settings, home, kept)
    return Removal(home if home.exists() else None, lake, tuple(_captures(settings)), tuple(kept))


def _lake(settings: Settings, home: Path, kept: list[str]) -> Path | None:
    """The lake's folder outside of home, if it is ours."""
    split = urlsplit(settings.lake_root)
    if len(split.scheme) > 1 and split.scheme != "file":
        kept.append(f"the lake at {settings.lake_root} is kept: remove it with the tools of its store")
        return None
    folder = Path(unquote(split.path) if split.scheme == "file" else settings.lake_root).absolute()
    if folder.is_relative_to(home) or not folder.exists():
        return None
    if not (folder / _LAYOUT_FILE).is_file():
        kept.append(f"{folder} is kept: without {_LAYOUT_FILE} it is not a lake of this program")
        return None
    if home.is_relative_to(folder):
        kept.append(f"the lake in {folder} is kept: the home folder lies in it")
        return None
    return folder


def _captures(settings: Settings) -> list[Capture]:
    """Sources named by the environment of which the lake holds a ledger: another mesh's are not ours."""
    # Loads the Delta Lake library, which whoever forks must not.
    from mesh_assets.cdc.connection import place
    from mesh_assets.lake.table import Table
    from mesh_assets.orchestration.head import source_config

    layout = Layout(settings.lake_root)
    found = []
    for (domain, source), tables in discover(settings.products).sources().items():
        if not os.environ.get(settings.source_variable(domain, source)):
            continue
        if Table.exists(layout.source(domain, source, "ledger")):
            config = source_config(settings, domain, source, tables)
            found.append(Capture(config, place(config.url)))
    return found

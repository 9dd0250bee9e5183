"""The definitions of one code location, made again only if what they are made of has changed.

A run worker needs the definitions of its location. Forked from a process that has them, it has them too.
"""

from __future__ import annotations

import contextlib
import hashlib

import dagster as dg

from mesh_assets.orchestration.catalog import DOMAIN
from mesh_assets.orchestration.component import file_states, folder_definitions
from mesh_assets.orchestration.enterprise import enterprise_definitions
from mesh_assets.settings import Settings

_made: dict[str, tuple[str, dg.Definitions]] = {}


def location(name: str) -> dg.Definitions:
    """The definitions of a domain, or of the enterprise.

    Raises:
        AttributeError: if there is no such domain.
        ContractError: naming file and line, if the domain's own definition is wrong.
    """
    settings = Settings()
    folder = settings.products.absolute() / name
    if name != DOMAIN and not folder.is_dir():
        known = sorted(found.name for found in folder.parent.iterdir() if found.is_dir())
        raise AttributeError(f"there is no domain {name!r} in {folder.parent}; available: {', '.join(known)}")
    state = fingerprint(settings)
    if name not in _made or _made[name][0] != state:
        definitions = enterprise_definitions() if name == DOMAIN else folder_definitions(folder)
        _made[name] = state, definitions
    return _made[name][1]


def prepare() -> None:
    """Make the definitions of all locations that can be made, unless they are there."""
    settings = Settings()
    folders = sorted(settings.products.absolute().glob("*/defs.yaml"))
    for name in (DOMAIN, *(folder.parent.name for folder in folders)):
        # Whoever needs this location is told what is wrong with it.
        with contextlib.suppress(Exception):
            location(name).get_repository_def()


def fingerprint(settings: Settings) -> str:
    """Changes with any file that products are defined by, and with the settings."""
    states = file_states(settings.products.absolute())
    return hashlib.sha256(f"{settings.model_dump_json()}\n{states}".encode()).hexdigest()

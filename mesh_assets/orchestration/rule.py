"""The quality rules of products as Dagster shows them, without what compiles them.

A process of its own (:mod:`mesh_assets.checks.rule_list`) lists them; what it found is kept in Dagster's home
until a file of the products changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mesh_assets
from mesh_assets.errors import ContractError
from mesh_assets.names import ProductName
from mesh_assets.settings import Settings

_MODULE = "mesh_assets.checks.rule_list"
_FILE = "rules.json"
_OTHER = re.compile(r"[^A-Za-z0-9_]")
_FILES = (".yaml", ".yml", ".py", ".sql", ".json")


@dataclass(frozen=True)
class ListedRule:
    """One rule of a product; see :class:`mesh_assets.quality.rule.Rule`."""

    id: str
    table: str
    columns: tuple[str, ...]
    scope: str
    severity: str
    blocking: bool
    dimension: str
    description: str
    path: str
    line: int

    @property
    def check_name(self) -> str:
        """What Dagster calls the check."""
        return check_name(self.id)


def check_name(rule: str) -> str:
    """The name of a rule's check: unique within the table's asset, of letters, digits and ``_``."""
    _, _, own = rule.partition(".")
    clean = _OTHER.sub("_", own)
    plain = own.replace(".", "_")
    return clean if clean == plain else f"{clean}_{hashlib.sha256(own.encode()).hexdigest()[:6]}"


def listed_rules(settings: Settings) -> Mapping[ProductName, tuple[ListedRule, ...] | ContractError]:
    """The rules of every product, or what is wrong with them."""
    state = _state(settings)
    folder = settings.home.absolute() / "dagster"
    found = _kept(folder / _FILE, state)
    if found is None:
        with _alone(folder):
            found = _kept(folder / _FILE, state)
            if found is None:
                found = _listed(settings.products.absolute())
                _keep(folder / _FILE, state, found)
    return {ProductName.parse(name): _rules(entry) for name, entry in found.items()}


def _rules(entry: Mapping[str, Any]) -> tuple[ListedRule, ...] | ContractError:
    if "error" in entry:
        return ContractError(str(entry["error"]))
    return tuple(ListedRule(**{**rule, "columns": tuple(rule["columns"])}) for rule in entry["rules"])


def _listed(products: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, str(products)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise ContractError(
            f"the quality rules of {products} cannot be listed: {done.stderr.strip().splitlines()[-1:]}",
            hint=f"run {sys.executable} -m {_MODULE} {products}",
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _state(settings: Settings) -> str:
    """Changes with the products' files and with this program."""
    states = [version("mesh-assets")]
    for folder in (settings.products.absolute(), Path(mesh_assets.__file__).parent / "quality"):
        for file in sorted(folder.rglob("*")):
            if file.suffix in _FILES:
                with contextlib.suppress(FileNotFoundError):
                    states.append(f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}")
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def _kept(file: Path, state: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(file.read_text())
        if kept["state"] == state:
            found: dict[str, Any] = kept["products"]
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(file: Path, state: str, found: Mapping[str, Any]) -> None:
    # Somewhere without a home of its own it is listed again the next time.
    with contextlib.suppress(OSError):
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps({"state": state, "products": found}))
        draft.replace(file)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time list the rules: the others then find what it has kept."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / f"{_FILE}.lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""The note in the folder of an old version: who stays with it though they name no version.

A folder that the mesh made by itself has all its files noted as well, and the mesh removes it when
nobody reads it any more. One without, or that was edited since, is the team's: the mesh never touches it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mesh_assets.contract.definition import ProductDefinition
from mesh_assets.contract.document import display
from mesh_assets.errors import ContractError
from mesh_assets.names import ProductName

KEPT_FILE = "kept.json"


@dataclass(frozen=True)
class Kept:
    """The note.

    Attributes:
        readers: consumers that name no version and rely on the old one -> :func:`written_hash` of each
            when it was kept. They read it until they are written anew.
        files: path in the folder -> SHA-256 (hex) of what the mesh wrote there by itself.
    """

    readers: Mapping[ProductName, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Mapping[str, bytes], readers: Mapping[ProductName, str]) -> Kept:
        """The note on a folder with these files."""
        return cls(readers, {path: hashlib.sha256(data).hexdigest() for path, data in files.items()})

    @classmethod
    def read(cls, folder: Path) -> Kept | None:
        """The note in a product's folder; None without one.

        Raises:
            ContractError: if it is damaged.
        """
        path = folder / KEPT_FILE
        try:
            found = json.loads(path.read_bytes())
            readers = {ProductName.parse(name): str(known) for name, known in found["readers"].items()}
            return cls(readers, dict(found["files"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ContractError(
                f"{display(path)} cannot be read: {error}",
                hint=f"remove {display(folder)}: the next shift makes it again if it is needed",
            ) from error

    def to_json(self) -> bytes:
        """The note as its file holds it."""
        readers = {str(name): known for name, known in sorted(self.readers.items())}
        text = json.dumps({"readers": readers, "files": dict(sorted(self.files.items()))}, indent=1)
        return f"{text}\n".encode()

    def untouched(self, folder: Path) -> bool:
        """Whether the folder holds what the mesh wrote, and nothing else."""
        held = {
            str(path.relative_to(folder)): path
            for path in folder.rglob("*")
            if path.is_file() and path.name != KEPT_FILE and "__pycache__" not in path.parts
        }
        return held.keys() == self.files.keys() and all(
            hashlib.sha256(path.read_bytes()).hexdigest() == self.files[name] for name, path in held.items()
        )


def written_hash(definition: ProductDefinition) -> str:
    """SHA-256 (hex) of all that a team writes of how a derived product is made: definition and transform."""
    found = hashlib.sha256()
    for path in (definition.path, definition.transform):
        if path is not None and path.is_file():
            found.update(path.read_bytes())
        found.update(b"\0")
    return found.hexdigest()

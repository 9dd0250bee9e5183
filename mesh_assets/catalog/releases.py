"""The released contracts of one product: what was promised with the data, each version kept as it was.

A contract is released by the first shift that lands data under it. Its file is never written again:
other content under the same version would change a promise that somebody relies on already. Beside it
lies what the product was made by last under that contract, so that the version can be made on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mesh_assets.contract.loader import content_hash, from_content
from mesh_assets.contract.model import Contract
from mesh_assets.errors import ContractError, LakeError, LayoutUnknown
from mesh_assets.lake.storage import Storage, storage_of

FORMAT = 1
_FOLDER = "contracts"
_MADE_BY = "made_by"
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Release:
    """One released contract.

    Attributes:
        contract: as it was; its ``path`` is the file of the release.
        released_at: when the first data was made under it.
    """

    contract: Contract
    released_at: datetime


class Releases:
    """The released contracts below a product's catalog; one writer at a time (the product's shift).

    Args:
        uri: the product's catalog (:meth:`mesh_assets.names.Layout.catalog`).
    """

    def __init__(self, uri: str) -> None:
        self._storage: Storage = storage_of(uri)

    def latest(self) -> Contract | None:
        """The contract with the highest version; None if none was released."""
        released = self.all()
        return released[-1].contract if released else None

    def all(self) -> list[Release]:
        """Every released contract, lowest version first.

        Raises:
            LakeError: if a release is damaged.
            LayoutUnknown: if one was written by a newer program.
        """
        paths = [entry.path for entry in self._storage.entries(_FOLDER) if entry.path.endswith(".json")]
        found = [self._read(path) for path in paths if not path.removeprefix(f"{_FOLDER}/").startswith(".")]
        return sorted(found, key=lambda release: version_order(release.contract.version))

    def at(self, version: str) -> Release | None:
        """The release of one contract version; None if there is none.

        Raises:
            LakeError: if the release is damaged.
            LayoutUnknown: if it was written by a newer program.
        """
        try:
            return self._read(_path(version))
        except FileNotFoundError:
            return None

    def record(self, contract: Contract, at: datetime | None = None) -> Release:
        """Keep a contract as released, durably; one that is kept already stays as it is.

        Args:
            contract: what holds from now on.
            at: when it was released; now when left out.

        Raises:
            ContractError: if this version was released with other content.
            LakeError: if the release that is there is damaged.
            StorageFull: if the disk is full.
        """
        held = self.at(contract.version)
        if held is not None:
            if held.contract.hash != contract.hash:
                raise ContractError(
                    f"{contract.path}:1: version {contract.version} of {contract.name} was released on "
                    f"{held.released_at:%Y-%m-%d} with other content",
                    hint="a released contract never changes: give this one a higher version "
                    f"(what was released is in {self._storage.address(_path(contract.version))})",
                )
            return held
        released_at = (at or datetime.now(UTC)).astimezone(UTC)
        record = {
            "format": FORMAT,
            "product": str(contract.name),
            "version": contract.version,
            "hash": contract.hash,
            "released_at": released_at.isoformat(timespec="microseconds"),
            "contract": contract.content,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        self._storage.write(_path(contract.version), f"{text}\n".encode())
        return self._read(_path(contract.version))

    def made_by(self, version: str) -> dict[str, bytes] | None:
        """What else was in the product's folder under a contract version, by path; None if not recorded.

        Raises:
            LakeError: if the record is damaged.
        """
        path = _path(version, _MADE_BY)
        try:
            found: dict[str, str] = json.loads(self._storage.read(path))
            return {name: text.encode(errors="surrogateescape") for name, text in found.items()}
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError) as error:
            raise LakeError(
                f"{self._storage.address(path)} cannot be read: {error}",
                hint="remove it: the product's next shift writes it again",
            ) from error

    def record_made_by(self, version: str, files: Mapping[str, bytes]) -> None:
        """Keep what the product is made by under a contract version, durably, if it is not kept so already.

        Raises:
            StorageFull: if the disk is full.
        """
        plain = {name: data.decode(errors="surrogateescape") for name, data in sorted(files.items())}
        text = f"{json.dumps(plain, indent=1)}\n".encode()
        path = _path(version, _MADE_BY)
        try:
            if self._storage.read(path) == text:
                return
        except FileNotFoundError:
            pass
        self._storage.write(path, text)

    def _read(self, path: str) -> Release:
        address = self._storage.address(path)
        try:
            record: dict[str, Any] = json.loads(self._storage.read(path))
            if record["format"] > FORMAT:
                raise LayoutUnknown(
                    f"{address} has format {record['format']}; this program knows formats up to {FORMAT}",
                    hint="update the program: a newer one wrote here",
                )
            contract = from_content(record["contract"], Path(address))
            released_at = datetime.fromisoformat(record["released_at"])
            whole = content_hash(record["contract"]) == record["hash"]
        except (ValueError, KeyError, TypeError) as error:
            raise LakeError(
                f"the released contract {address} cannot be read: {error}", hint="restore the file"
            ) from error
        if not whole:
            raise LakeError(f"the released contract {address} was changed", hint="restore the file")
        return Release(contract, released_at)


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts version texts by their numbers: 1.10.0 after 1.9.0."""
    parts = (part for part in _NUMBER.split(version) if part)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)


def _path(version: str, folder: str = _FOLDER) -> str:
    # A version may be any text; a file's name may not.
    return f"{folder}/{quote(version, safe='')}.json"

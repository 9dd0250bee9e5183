"""Where this installation keeps its state and finds its sources: one object, read once.

Every setting can be given as an environment variable with the prefix ``MESH_``; an empty one is not given.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from mesh_assets.errors import SettingError

_PROJECT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Folders, roots and addresses.

    Attributes:
        home: state of this installation (embedded clusters, lake, Dagster home, logs).
        lake: root URI of the lake; empty means ``home/lake``.
        products: the folder with one folder per domain.
        dagster_postgres_url: Dagster's instance storage; empty means the embedded cluster.
        port: where the Dagster UI listens, if it is free; else a free one is taken.
        shift_seconds: a shift over a source that is never idle ends after about this time, once its
            successor is ready.
    """

    model_config = SettingsConfigDict(env_prefix="MESH_", env_ignore_empty=True, extra="ignore")

    home: Path = Field(default=_PROJECT / ".mesh")
    lake: str = ""
    products: Path = Field(default=_PROJECT / "products")
    dagster_postgres_url: str = ""
    port: int = 3000
    shift_seconds: float = Field(default=900.0, gt=0)

    @cached_property
    def lake_root(self) -> str:
        """The lake's root: a local path or an object store's URI."""
        return self.lake or str(self.home.absolute() / "lake")

    @property
    def dagster_url_file(self) -> Path:
        """The private file in which a running ``mesh up`` leaves the address of its Dagster storage."""
        return self.home / "dagster.url"

    def dagster_url(self) -> str | None:
        """The PostgreSQL of Dagster's instance storage; None if neither setting nor running mesh has one."""
        if self.dagster_postgres_url:
            return self.dagster_postgres_url
        try:
            return self.dagster_url_file.read_text().strip()
        except FileNotFoundError:
            return None

    def source_variable(self, domain: str, source: str) -> str:
        """The environment variable that names a source's address."""
        return f"MESH_SOURCE_{domain}_{source}_URL".upper()

    def source_file(self, domain: str, source: str) -> Path:
        """The private file in which ``mesh up`` leaves the address of an embedded source."""
        return self.home / "sources" / f"{domain}.{source}.url"

    def source_url(self, domain: str, source: str) -> str:
        """The connection URL of a source (``postgresql://user:password@host:port/database``).

        Raises:
            SettingError: if neither the environment nor the embedded cluster names it.
        """
        variable = self.source_variable(domain, source)
        if url := os.environ.get(variable, ""):
            return url
        file = self.source_file(domain, source)
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            raise SettingError(
                f"the address of source {domain}.{source} is not known",
                hint=f"set {variable}=postgresql://user:password@host:port/database, "
                "or run `make up`, which brings its own databases",
            ) from None

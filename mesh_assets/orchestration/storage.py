"""Where Dagster keeps runs, events and schedules: PostgreSQL, found where the mesh has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dagster._config import UserConfigSchema
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from mesh_assets.settings import Settings


def storage_url(url: str) -> str:
    """The URL in the form that dagster-postgres needs.

    SQLAlchemy takes plain ``postgresql://`` for psycopg 3, whose parameters dagster-postgres cannot
    bind into NOTIFY.
    """
    return urlunsplit(urlsplit(url)._replace(scheme="postgresql+psycopg2"))


class InstanceStorage(ConfigurableClass):
    """Picks the storage when an instance is opened.

    It is the PostgreSQL that ``MESH_DAGSTER_POSTGRES_URL`` names, else the embedded one of the running
    ``mesh up``. Without either (``dg check defs`` in a fresh clone) it is SQLite in the mesh's home.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """How Dagster was told to make this object."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """No configuration: settings and environment say everything."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override] # it chooses a storage instead of being one
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> DagsterStorage:
        """The storage in force."""
        settings = Settings()
        url = settings.dagster_url()
        if url is not None:
            return DagsterPostgresStorage(
                storage_url(url), should_autocreate_tables=True, inst_data=inst_data
            )
        folder = settings.home.absolute() / "dagster" / "storage"
        folder.mkdir(parents=True, exist_ok=True)
        return DagsterSqliteStorage(str(folder), inst_data)

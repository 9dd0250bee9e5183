"""Where Dagster keeps runs, events and schedules: PostgreSQL, found where the mesh has it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
from dagster._config import UserConfigSchema
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log import EventLogStorage
from dagster._core.storage.runs import RunStorage
from dagster._core.storage.schedules import ScheduleStorage
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


class InstanceStorage(DagsterStorage[dg.DagsterInstance], ConfigurableClass):
    """Picks the storage when an instance is opened, and is that storage.

    It is the PostgreSQL that ``MESH_DAGSTER_POSTGRES_URL`` names, else the embedded one of the running
    ``mesh up``. Without either (``dg check defs`` in a fresh clone) it is SQLite in the mesh's home.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._chosen = _choose()
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """How Dagster was told to make this object."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """No configuration: settings and environment say everything."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, object]
    ) -> InstanceStorage:
        """Make it."""
        return cls(inst_data)

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Tell the storages whose they are."""
        super().register_instance(instance)
        for storage in (self.run_storage, self.event_log_storage, self.schedule_storage):
            if not storage.has_instance:
                storage.register_instance(instance)

    @property
    def event_log_storage(self) -> EventLogStorage[dg.DagsterInstance]:
        """Events."""
        return self._chosen.event_log_storage

    @property
    def run_storage(self) -> RunStorage[dg.DagsterInstance]:
        """Runs."""
        return self._chosen.run_storage

    @property
    def schedule_storage(self) -> ScheduleStorage[dg.DagsterInstance]:
        """Schedules, sensors and their ticks."""
        return self._chosen.schedule_storage


def _choose() -> DagsterStorage[dg.DagsterInstance]:
    settings = Settings()
    if (url := settings.dagster_url()) is not None:
        return DagsterPostgresStorage(storage_url(url))
    folder = settings.home.absolute() / "dagster" / "storage"
    folder.mkdir(parents=True, exist_ok=True)
    return DagsterSqliteStorage(str(folder))

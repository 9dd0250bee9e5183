"""Where Dagster keeps runs, events and schedules: PostgreSQL, found where the mesh has it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
import sqlalchemy as db
from dagster._config import UserConfigSchema
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log import EventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.runs import RunStorage
from dagster._core.storage.schedules import ScheduleStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import create_pg_engine

from mesh_assets.settings import Settings

_KEPT_CONNECTIONS = 3
_MORE_CONNECTIONS = 30
_RECYCLE_SECONDS = 3600

_engines: dict[tuple[int, str], db.Engine] = {}


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
        return pooled_storage(storage_url(url))
    folder = settings.home.absolute() / "dagster" / "storage"
    folder.mkdir(parents=True, exist_ok=True)
    return DagsterSqliteStorage(str(folder))


def pooled_storage(url: str) -> DagsterPostgresStorage:
    """Dagster's storage in PostgreSQL over connections that this process keeps.

    Dagster's own connects anew for every statement, and looks for its tables whenever an instance is
    opened, which a code server does for every tick: most of what an idle mesh would cost.
    """
    # A fork's connections are its own.
    process = (os.getpid(), url)
    create = process not in _engines
    storage = DagsterPostgresStorage(url, should_autocreate_tables=create)
    event_log = CheckHistoryEventLog(url, should_autocreate_tables=False)
    if create:
        _engines[process] = create_pg_engine(
            url,
            None,
            isolation_level="AUTOCOMMIT",
            pool_size=_KEPT_CONNECTIONS,
            max_overflow=_MORE_CONNECTIONS,
            pool_recycle=_RECYCLE_SECONDS,
            # The server may have been started again.
            pool_pre_ping=True,
        )
    # There is no other way in.
    for part in (storage.run_storage, event_log, storage.schedule_storage):
        setattr(part, "_engine", _engines[process])  # noqa: B010 - not an attribute of the base classes
    setattr(storage, "_event_log_storage", event_log)  # noqa: B010
    return storage


class CheckHistoryEventLog(PostgresEventLogStorage):
    """Dagster's event log, with every evaluation of a check that a run makes.

    Dagster's own takes it that a run evaluates a check once, and overwrites the earlier evaluation. A
    shift evaluates its checks every minute, and Dagster shows as up to date only what the run has
    evaluated that materialised the asset.
    """

    def _update_asset_check_evaluation(self, event: EventLogEntry, event_id: int | None) -> None:
        """Complete what was planned, or else keep one evaluation more."""
        if event.dagster_event is None:
            return
        evaluation = event.dagster_event.event_specific_data
        if not isinstance(evaluation, dg.AssetCheckEvaluation) or evaluation.partition is not None:
            super()._update_asset_check_evaluation(event, event_id)
            return
        checks = AssetCheckExecutionsTable
        target = evaluation.target_materialization_data
        found = {
            "execution_status": (
                AssetCheckExecutionRecordStatus.SUCCEEDED
                if evaluation.passed
                else AssetCheckExecutionRecordStatus.FAILED
            ).value,
            "evaluation_event": serialize_value(event),
            # As PostgreSQL wants it: UTC without a zone.
            "evaluation_event_timestamp": datetime.fromtimestamp(event.timestamp, UTC).replace(tzinfo=None),
            "evaluation_event_storage_id": event_id,
            "materialization_event_storage_id": target.storage_id if target else None,
        }
        named = {
            "asset_key": evaluation.asset_key.to_string(),
            "check_name": evaluation.check_name,
            "run_id": event.run_id,
        }
        planned = db.and_(
            *(checks.c[name] == value for name, value in named.items()),
            checks.c.execution_status == AssetCheckExecutionRecordStatus.PLANNED.value,
        )
        with self.index_connection() as connection:
            if not connection.execute(checks.update().where(planned).values(**found)).rowcount:
                connection.execute(checks.insert().values(**named, **found))

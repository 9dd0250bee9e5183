"""A captured organisation: the sample databases, one shift per domain, and some changes after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from mesh_assets.cli.app import app
from mesh_assets.ingest.shift import Shift
from mesh_assets.local import organisation
from mesh_assets.local.organisation.sales import Sales
from mesh_assets.local.postgres import Cluster
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget

QUICK = Budget(idle_seconds=0.1, batch_seconds=0.05, claim_seconds=60)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as on a wide terminal, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "200")


@dataclass(frozen=True)
class Organisation:
    """Where it is, and how to change it."""

    settings: Settings
    cluster: Cluster

    def execute(self, domain: str, *statements: str) -> None:
        """Run statements as the database's superuser, each in its own transaction."""
        with psycopg.connect(self.cluster.url(domain), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def trade(self, count: int) -> None:
        """Let the sales application commit some transactions."""
        with psycopg.connect(self.cluster.url("sales"), autocommit=True) as connection:
            application = Sales(connection, 1)
            application.begin(1)
            for _ in range(count):
                application.step()

    def capture(self, domain: str) -> None:
        """One short shift."""
        Shift(Mesh(self.settings).plan(domain, "app"), budget=QUICK).run()


@pytest.fixture(scope="package")
def captured(postgres: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Organisation]:
    """The organisation, captured, with a key of known history: customer 1 in sales."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    organisation.create(postgres, settings)
    made = Organisation(settings, postgres)
    for domain in organisation.DOMAINS:
        made.capture(domain)
    made.trade(20)
    made.execute(
        "sales",
        "update shop.customers set full_name = 'Ada [bold] Lovelace', credit_limit = 1234.50 "
        "where customer_id = 1",
        "update shop.customers set email = null where customer_id = 1",
    )
    made.capture("sales")
    yield made
    for domain in organisation.DOMAINS:
        postgres.drop_database(domain)


@pytest.fixture
def home(captured: Organisation, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands find the captured organisation."""
    monkeypatch.setenv("MESH_HOME", str(captured.settings.home))
    return captured.settings.home


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands find nothing captured and no source."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def mesh() -> Callable[..., Result]:
    """Run a command in this process."""
    runner = CliRunner()

    def run(*arguments: str, **options: Any) -> Result:
        result = runner.invoke(app, list(arguments), **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def answer(mesh: Callable[..., Result]) -> Callable[..., Any]:
    """Run a command with ``--json``; its answer, whatever the exit code."""

    def run(*arguments: str) -> Any:
        return json.loads(mesh(*arguments, "--json").stdout)

    return run

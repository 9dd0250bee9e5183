"""The sample organisation: made once, deterministic, consistent, ordinary and unaware of capture."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

from mesh_assets.local import organisation
from mesh_assets.local.organisation import application
from mesh_assets.local.organisation.application import Application, Runner, schema
from mesh_assets.local.organisation.distribution import Distribution
from mesh_assets.local.organisation.finance import Finance
from mesh_assets.local.organisation.sales import Sales
from mesh_assets.local.postgres import Cluster
from mesh_assets.settings import Settings
from tests.waiting import PATIENCE_SECONDS, until

KINDS: tuple[type[Application], ...] = (Sales, Distribution, Finance)
TABLES = {
    "sales": ("shop.customers", "shop.orders", "shop.order_lines"),
    "distribution": ("supply.warehouses", "supply.stock", "supply.shipments"),
    "finance": ("ledger.accounts", "ledger.transactions"),
}


def ticking() -> Callable[[], datetime]:
    """A clock that moves by a millisecond whenever it is read."""
    moment = datetime(2026, 3, 29, 12, tzinfo=UTC)

    def now() -> datetime:
        nonlocal moment
        moment += timedelta(milliseconds=1)
        return moment

    return now


def contents(url: str, domain: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1".encode()).fetchall()
            for table in TABLES[domain]
        }


def played(url: str, kind: type[Application], *, seed: int, count: int) -> Application:
    """A filled database after ``count`` transactions."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(schema(kind.name).encode())
        application = kind(connection, seed, ticking())
        application.seed()
        application.begin(seed)
        for _ in range(count):
            application.step()
    return application


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def cluster(postgres: Cluster, settings: Settings) -> Iterator[Cluster]:
    """The shared cluster with the organisation in it."""
    organisation.create(postgres, settings)
    yield postgres
    for domain in organisation.DOMAINS:
        postgres.drop_database(domain)


def environment(cluster: Cluster, domain: str) -> dict[str, str]:
    return {**os.environ, **organisation.application_environment(cluster, domain)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_does_the_same(postgres: Cluster, kind: type[Application]) -> None:
    found = []
    for seed in (7, 7, 8):
        url = postgres.create_database("seeded")
        played(url, kind, seed=seed, count=150)
        found.append(contents(url, kind.name))
        postgres.drop_database("seeded")
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_action_runs_and_changes_something(database_url: str, kind: type[Application]) -> None:
    application = played(database_url, kind, seed=3, count=600)
    changes = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_user_tables"
    with psycopg.connect(database_url, autocommit=True) as connection:
        application.connection = connection
        for _, action in application.actions():
            for _ in range(200):
                with connection.transaction():
                    action()
                    if connection.execute(changes).fetchone() != (0,):
                        break
            else:
                pytest.fail(f"{action.__name__} changed nothing in 200 transactions")


@pytest.mark.parametrize("kind", KINDS)
def test_some_transactions_roll_back(database_url: str, kind: type[Application]) -> None:
    application = played(database_url, kind, seed=5, count=200)
    assert application.rolled_back > 0
    assert application.committed > 5 * application.rolled_back


def test_the_books_balance(database_url: str) -> None:
    played(database_url, Finance, seed=2, count=400)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT sum(balance) FROM ledger.accounts").fetchone() == (0,)
        off = connection.execute(
            "SELECT count(*) FROM ledger.accounts AS a WHERE balance <> coalesce("
            "(SELECT sum(amount) FROM ledger.transactions AS t WHERE t.account_id = a.account_id), 0)"
        ).fetchone()
        reversals = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE r.amount = -t.amount) FROM ledger.transactions AS t "
            "JOIN ledger.transactions AS r ON r.transaction_id = t.reversed_by"
        ).fetchone()
    assert off == (0,)
    assert reversals is not None
    assert 0 < reversals[0] == reversals[1]


def test_the_rows_are_as_odd_as_real_ones(cluster: Cluster) -> None:
    with cluster.connect("sales") as connection:
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE email IS NULL), count(DISTINCT segment), "
            "count(*) FILTER (WHERE octet_length(full_name) > length(full_name)), count(*) "
            "FROM shop.customers"
        ).fetchone()
    assert row is not None
    assert row[0] > 0
    assert row[1] == 3
    assert row[2] > 0
    assert row[3] >= 2_000
    with cluster.connect("distribution") as connection:
        large = connection.execute(
            "SELECT min(pg_column_size(manual)), bool_or(manual IS NULL) FROM supply.warehouses"
        ).fetchone()
    assert large is not None
    assert large[0] >= 100_000  # out of line, uncompressed
    assert large[1]


def test_references_between_domains_exist(cluster: Cluster) -> None:
    queries = {
        "sales": "SELECT order_id FROM shop.orders",
        "distribution": "SELECT order_id FROM supply.shipments",
        "finance": "SELECT order_id FROM ledger.transactions WHERE order_id IS NOT NULL",
    }
    numbers = {}
    for domain, query in queries.items():
        with cluster.connect(domain) as connection:
            numbers[domain] = {row[0] for row in connection.execute(query.encode())}
    assert len(numbers["sales"]) > 3_000
    assert numbers["distribution"] <= numbers["sales"]
    assert numbers["finance"] <= numbers["sales"]


def test_a_second_creation_keeps_everything(cluster: Cluster, settings: Settings) -> None:
    def fingerprint() -> list[Any]:
        found = []
        for domain in organisation.DOMAINS:
            with cluster.connect(domain) as connection:
                found += [
                    connection.execute(
                        f"SELECT count(*), max(xmin::text::int8) FROM {table}".encode()
                    ).fetchone()
                    for table in TABLES[domain]
                ]
        return found

    before = fingerprint()
    urls = organisation.create(cluster, settings)
    assert fingerprint() == before
    assert {domain: settings.source_url(domain, "app") for domain in organisation.DOMAINS} == urls


def test_addresses_are_private(cluster: Cluster, settings: Settings) -> None:
    file = settings.source_file("sales", "app")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_capture_may_read_replicate_and_publish(cluster: Cluster, settings: Settings) -> None:
    url = settings.source_url("finance", "app")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE PUBLICATION tried FOR TABLE ledger.accounts, ledger.transactions")
        connection.execute("SELECT pg_create_logical_replication_slot('tried', 'pgoutput')")
        connection.execute("SELECT pg_drop_replication_slot('tried')")
        connection.execute("DROP PUBLICATION tried")
        count = connection.execute("SELECT count(*) FROM ledger.accounts").fetchone()
    assert count is not None
    assert count[0] > 1_000


def test_roles_stay_in_their_domain(cluster: Cluster, settings: Settings) -> None:
    for url in (settings.source_url("finance", "app"), cluster.url("finance", "finance_app")):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(url.rpartition("/")[0] + "/sales")
    with psycopg.connect(cluster.url("finance", "finance_app")) as connection:
        role = connection.execute(
            "SELECT rolsuper, rolreplication, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert role == (False, False, False)


@pytest.mark.parametrize("domain", organisation.DOMAINS)
def test_an_application_is_a_program_that_stops_when_told(cluster: Cluster, domain: str) -> None:
    counted = subprocess.run(
        [*organisation.application_command(domain, rate=100_000), "--count", "20"],
        env=environment(cluster, domain),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert counted.returncode == 0, counted.stderr
    assert "transactions committed" in counted.stderr
    assert "postgresql://" not in " ".join(counted.args)


def test_a_signal_ends_an_application_in_its_pause(cluster: Cluster) -> None:
    # 500 s pass until its second transaction.
    command = organisation.application_command("sales", rate=0.002)
    first = (
        "SELECT pid FROM pg_stat_activity WHERE usename = 'sales_app' AND state = 'idle' "
        "AND query IN ('COMMIT', 'ROLLBACK')"
    )
    with cluster.connect("sales") as connection:
        until(lambda: connection.execute(first).fetchone() is None, "no other is there")
        process = subprocess.Popen(command, env=environment(cluster, "sales"))
        try:
            until(lambda: connection.execute(first).fetchone() is not None, "its first transaction")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
            process.wait()


def test_a_signal_at_any_moment_ends_an_application(cluster: Cluster) -> None:
    """Its handler runs between any two lines, wherever the application waits."""
    watched = {application.__file__, threading.__file__}
    for last in itertools.count(1):
        runner = Runner(Finance, cluster.url("finance", "finance_app"), rate=1000, seed=1)
        seen = 0

        def look(
            frame: FrameType, event: str, _: object, runner: Runner = runner, last: int = last
        ) -> Callable[..., Any]:
            nonlocal seen
            seen += event == "line" and frame.f_code.co_filename in watched
            if seen == last:
                runner.stop()
            return look

        sys.settrace(look)
        try:
            runner.run(count=3)
        finally:
            sys.settrace(None)
        if seen < last:
            break
    assert last > 50


def test_an_application_without_address_says_so() -> None:
    bare = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        organisation.application_command("sales", rate=1),
        env=bare,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "DATABASE_URL is not set" in done.stderr


def test_an_idle_application_does_nothing_until_stopped(cluster: Cluster) -> None:
    runner = Runner(Finance, cluster.url("finance", "finance_app"), rate=0, seed=1)
    polls = iter([False, False, True])
    runner.run(stopped=lambda: next(polls, True))
    assert runner.committed == 0


def test_an_application_outlives_its_database(tmp_path: Path) -> None:
    own = Cluster(tmp_path / "own", shared_buffers_mb=16, options={"fsync": "off"})
    try:
        own.start()
        own.create_role("finance_app")
        url = own.create_database("finance", owner="finance_app")
        played(url, Finance, seed=1, count=0)
        runner = Runner(Finance, url, rate=1e6, seed=1)
        killed = False

        def stopped() -> bool:
            nonlocal killed
            if runner.committed >= 10 and not killed:
                killed = True
                own.kill()
                own.start()
            return runner.committed >= 20

        runner.run(stopped=stopped)
        assert killed
        assert runner.committed >= 20
    finally:
        own.remove()

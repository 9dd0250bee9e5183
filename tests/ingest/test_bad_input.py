"""What goes wrong around a shift: each a clear error, the others keep running, nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from mesh_assets.cdc.gap import GapLog
from mesh_assets.cdc.schema import SchemaLog, SchemaVersion
from mesh_assets.cdc.source import Source, SourceConfig
from mesh_assets.errors import (
    ContractError,
    CredentialsRejected,
    MeshError,
    PublicationLost,
    SourceDisconnected,
    SourceNotLogical,
    SourceUnreachable,
)
from mesh_assets.lake.table import Table
from mesh_assets.local.organisation.application import schema
from mesh_assets.local.organisation.sales import Sales
from mesh_assets.local.postgres import Cluster
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.plan import CapturePlan
from mesh_assets.shift.report import BatchReport, Silent
from tests.crash import workload
from tests.crash.world import World, plan_for
from tests.ingest.capture import LARGE, QUICK, assert_equal, drain, execute, log_of

PRODUCTS = Path(__file__).parents[2] / "products"


@contextmanager
def own_cluster(*, logical: bool = True) -> Iterator[Cluster]:
    """A PostgreSQL that the test may stop."""
    # Not pytest's own temporary folder: PostgreSQL does not run as root and must reach its own.
    folder = Path(tempfile.mkdtemp(prefix="mesh-own-"))
    folder.chmod(0o711)
    cluster = Cluster(folder / "cluster", logical=logical, shared_buffers_mb=16, options={"fsync": "off"})
    try:
        yield cluster.start()
    finally:
        cluster.remove()
        shutil.rmtree(folder)


# -- the server and its doors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "instead", "said"),
    [
        ("password", "quite-wrong", "password authentication failed"),
        ("user", "nobody_here", "authentication failed"),
        ("dbname", "no_such_database", "does not exist"),
    ],
)
def test_wrong_credentials_say_what_was_refused(world: World, part: str, instead: str, said: str) -> None:
    drain(world.plan)
    known = psycopg.conninfo.conninfo_to_dict(world.url)
    password = str(known["password"])
    known[part] = instead
    wrong = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**known)
    world.application.transact(5)
    with pytest.raises(CredentialsRejected) as error:
        drain(replace(world.plan, source=replace(world.plan.source, url=wrong)))
    assert said in str(error.value)
    assert f"{known['host']}:{known['port']}/{known['dbname']}" in str(error.value)
    assert "hint: " in str(error.value)
    assert instead not in str(error.value) or part != "password"
    assert password not in str(error.value)
    drain(world.plan)
    assert_equal(world.plan)


def test_a_user_who_may_not_replicate_is_told_how_to_get_it(world: World, postgres: Cluster) -> None:
    postgres.create_role("reader_only")
    url = world.url.replace(
        "postgres:" + postgres.password(), "reader_only:" + postgres.password("reader_only")
    )
    with pytest.raises(MeshError, match="ALTER ROLE reader_only REPLICATION"):
        drain(replace(world.plan, source=replace(world.plan.source, url=url)))


def test_a_table_that_may_not_be_read_is_parked_and_the_others_go_on(world: World, postgres: Cluster) -> None:
    """Its changes come all the same, by the publication; they land when it may be read again."""
    postgres.create_role("narrow", replication=True)
    name = world.url.rsplit("/", 1)[-1]
    execute(
        world.url,
        f"grant create on database {name} to narrow",
        "grant usage on schema shop to narrow",
        "grant select on all tables in schema shop to narrow",
        *(f"alter table {table} owner to narrow" for table in workload.TABLES),
    )
    url = postgres.url(name, "narrow")
    plan = replace(world.plan, source=replace(world.plan.source, url=url))
    drain(plan)
    execute(world.url, "revoke select on shop.badge from narrow")
    world.application.transact(30)
    result = drain(plan)
    assert list(result.refused) == ["shop.badge"]
    assert "may not be read" in result.refused["shop.badge"]
    assert "GRANT SELECT" in result.refused["shop.badge"]
    assert_equal(world.plan, "item", "line")
    execute(world.url, "grant select on shop.badge to narrow")
    world.application.transact(30)
    assert not drain(plan).refused
    assert_equal(plan)


def test_a_server_that_writes_no_logical_wal_says_which_setting(tmp_path: Path) -> None:
    with own_cluster(logical=False) as cluster:
        url = cluster.create_database("app")
        workload.create(url)
        with pytest.raises(SourceNotLogical, match="wal_level = replica") as error:
            drain(plan_for(url, tmp_path / "lake"))
        assert "ALTER SYSTEM SET wal_level = logical" in str(error.value)
        cluster.stop()
        with pytest.raises(SourceUnreachable):
            drain(plan_for(url, tmp_path / "lake"))


# -- what a shift left at the source ------------------------------------------------------------


def test_a_publication_that_was_dropped_is_made_again_and_its_absence_is_a_gap(world: World) -> None:
    drain(world.plan)
    world.application.transact(10)
    execute(world.url, f"drop publication {world.plan.source.publication}")
    world.application.transact(10)
    drain(world.plan)
    assert_equal(world.plan)
    assert GapLog(world.plan.part_uri("gaps")).latest_lsn() > 0
    reasons = Table.open(world.plan.part_uri("gaps")).read()["reason"].to_pylist()
    assert reasons == ["the publication was dropped: what changed meanwhile was not sent"]
    world.application.transact(10)
    drain(world.plan)
    assert_equal(world.plan)


def test_a_publication_that_is_dropped_under_a_running_shift(world: World) -> None:
    drain(world.plan)
    world.application.transact(10)

    class Dropping(Silent):
        def __init__(self) -> None:
            self.dropped = False

        def batch(self, report: BatchReport) -> None:
            if not self.dropped:
                self.dropped = True
                execute(world.url, f"drop publication {world.plan.source.publication}")
                world.application.transact(10)

    with pytest.raises(PublicationLost, match="mesh_shop_app") as error:
        drain(world.plan, Dropping(), replace(QUICK, idle_seconds=20))
    assert "the next shift makes both again" in str(error.value)
    # Made again by somebody else meanwhile: the time without it is a gap all the same.
    tables = ", ".join(world.plan.source.tables)
    execute(world.url, f"create publication {world.plan.source.publication} for table {tables}")
    drain(world.plan)
    assert_equal(world.plan)
    assert GapLog(world.plan.part_uri("gaps")).count == 1


def test_a_slot_that_somebody_else_advanced_is_a_gap(world: World) -> None:
    drain(world.plan)
    world.application.transact(30)
    execute(
        world.url,
        f"select pg_replication_slot_advance('{world.plan.source.slot}', pg_current_wal_lsn())",
    )
    said: list[str] = []

    class Listening(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    drain(world.plan, Listening())
    assert any("somebody else consumed it" in text for text in said)
    world.application.transact(10)
    drain(world.plan)
    assert_equal(world.plan)


def test_a_slot_whose_wal_was_removed_is_a_gap(world: World, postgres: Cluster) -> None:
    drain(world.plan)
    try:
        with postgres.connect() as connection:
            connection.execute("alter system set max_slot_wal_keep_size = '1MB'")
            connection.execute("select pg_reload_conf()")
            for _ in range(4):
                world.application.transact(3)
                connection.execute("select pg_switch_wal()")
            connection.execute("checkpoint")
        with Source(world.plan.source) as source:
            slot = source.slot()
        assert slot is not None
        assert slot.wal_status == "lost"
    finally:
        with postgres.connect() as connection:
            connection.execute("alter system reset max_slot_wal_keep_size")
            connection.execute("select pg_reload_conf()")
    drain(world.plan)
    assert GapLog(world.plan.part_uri("gaps")).latest_lsn() > 0
    world.application.transact(10)
    drain(world.plan)
    assert_equal(world.plan)


def test_a_source_that_is_another_server_is_read_again(world: World) -> None:
    drain(world.plan)
    with own_cluster() as other:
        url = other.create_database("app")
        workload.create(url)
        execute(url, "insert into shop.line values (1, 1, 1, 'elsewhere')")
        moved = replace(world.plan, source=replace(world.plan.source, url=url))
        drain(moved)
        assert "another server" in Table.open(moved.part_uri("gaps")).read()["reason"][0].as_py()
        assert_equal(moved)
        execute(url, "update shop.line set remark = 'and on'")
        drain(moved)
        assert_equal(moved)


def test_a_shape_in_which_nothing_was_captured_binds_nobody(world: World) -> None:
    """A shift may die between noting a table's shape and its first row."""
    with Source(world.plan.source) as source:
        shape = SchemaVersion.of(source.describe("shop.line"), 1)
    SchemaLog(world.plan.part_uri("schemas")).record([shape], datetime.now(UTC))
    execute(world.url, "alter table shop.line alter column quantity type bigint")
    assert not drain(world.plan).refused
    assert_equal(world.plan)


def test_a_dropped_table_is_refused_and_the_others_go_on(world: World) -> None:
    drain(world.plan)
    world.application.truncates = False
    execute(world.url, "drop table shop.badge")
    execute(world.url, "insert into shop.item (id, name) values (8000, 'goes on')")
    result = drain(world.plan)
    assert list(result.refused) == ["shop.badge"]
    assert "there is no table" in result.refused["shop.badge"]
    assert "available: " in result.refused["shop.badge"]
    assert_equal(world.plan, "item", "line")


def test_a_server_that_stops_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    with own_cluster() as cluster:
        world = World(cluster.create_database("app"), tmp_path / "lake", seed=3)
        world.application.transact(40)
        drain(world.plan)
        world.application.transact(40)

        class Killing(Silent):
            def batch(self, report: BatchReport) -> None:
                cluster.kill()

        with pytest.raises((SourceDisconnected, SourceUnreachable)) as error:
            drain(world.plan, Killing(), replace(QUICK, batch_rows=10, idle_seconds=20))
        assert "127.0.0.1" in str(error.value)
        cluster.start()
        world.application.reconnect()
        world.application.transact(20)
        drain(world.plan)
        assert_equal(world.plan)
        world.close()


# -- contracts ----------------------------------------------------------------------------------


class Shop:
    """The sample organisation's sales domain: its real contracts, to be broken, and its application."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.products = home / "products"
        shutil.copytree(PRODUCTS / "sales", self.products / "sales")
        self.settings = Settings(home=home, products=self.products)
        address = self.settings.source_file("sales", "app")
        address.parent.mkdir(parents=True)
        address.write_text(url)
        self._connection = psycopg.connect(url, autocommit=True)
        execute(url, schema("sales"))
        self.application = Sales(self._connection, 1)
        self.application.seed()
        self.application.begin(1)

    @property
    def mesh(self) -> Mesh:
        """The products as their folders are now."""
        return Mesh(self.settings)

    @property
    def plan(self) -> CapturePlan:
        """What a shift that starts now has to do."""
        return self.mesh.plan("sales", "app")

    def step(self, count: int) -> None:
        """Let the application run so many transactions."""
        for _ in range(count):
            self.application.step()

    def edit(self, product: str, old: str, new: str) -> None:
        """Change a contract."""
        path = self.products / "sales" / product / "contract.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop that runs, not captured yet."""
    shop = Shop(database_url, tmp_path / "home")
    yield shop
    shop.close()


def in_order(plan: CapturePlan, table: str) -> bool:
    """Whether the rows of a change log are in the order of their positions."""
    rows = log_of(plan, table).scan(columns=["_seq", "_position", "_ordinal"]).collect().sort("_seq")
    places = list(rows.select("_position", "_ordinal").iter_rows())
    return places == sorted(places)


def test_a_broken_contract_stops_one_product_and_loses_nothing(shop: Shop) -> None:
    drain(shop.plan, budget=LARGE)
    shop.step(40)
    shop.edit("customers", "kind: DataContract", "kind: DataContrakt")
    broken = shop.plan
    assert [str(name) for name in broken.products] == ["sales.orders"]
    parked = drain(broken, budget=LARGE).parked_count
    assert parked > 0
    assert_equal(broken)
    with pytest.raises(ContractError, match=r"contract.yaml:2: .*DataContrakt") as error:
        shop.mesh.open("sales.customers")
    assert "allowed: DataContract" in str(error.value)
    assert shop.mesh.open("sales.orders").polars().height > 0
    # More is parked while it stays broken.
    shop.step(40)
    drain(shop.plan, budget=LARGE)
    shop.edit("customers", "kind: DataContrakt", "kind: DataContract")
    shop.step(40)
    said: list[str] = []

    class Listening(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    drain(shop.plan, Listening(), LARGE)
    assert any("parked changes landed" in text for text in said)
    assert in_order(shop.plan, "customers")
    assert_equal(shop.plan)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("physicalType: numeric(12,2)", "physicalType: numeric(12,4)", "numeric(12,4)"),
        ("- name: full_name", "- name: whole_name", "whole_name"),
    ],
)
def test_a_contract_that_the_source_does_not_keep_stops_its_table(
    shop: Shop, old: str, new: str, said: str
) -> None:
    drain(shop.plan, budget=LARGE)
    shop.edit("customers", old, new)
    shop.step(60)
    result = drain(shop.plan, budget=LARGE)
    assert list(result.refused) == ["shop.customers"]
    assert said in result.refused["shop.customers"]
    assert "sales.customers" in result.refused["shop.customers"]
    assert "hint: " in result.refused["shop.customers"]
    assert_equal(shop.plan, "orders", "order_lines")
    shop.edit("customers", new, old)
    shop.step(20)
    assert not drain(shop.plan, budget=LARGE).refused
    assert in_order(shop.plan, "customers")
    assert_equal(shop.plan)


def test_a_contract_with_another_key_stops_its_table(shop: Shop) -> None:
    drain(shop.plan, budget=LARGE)
    path = shop.products / "sales" / "orders" / "contract.yaml"
    before = path.read_text()
    shop.edit("orders", "        primaryKey: true\n        primaryKeyPosition: 2\n", "")
    shop.edit("orders", "        primaryKeyPosition: 1\n", "")
    shop.step(40)
    result = drain(shop.plan, budget=LARGE)
    assert list(result.refused) == ["shop.order_lines"]
    assert "order_id, line_number" in result.refused["shop.order_lines"]
    assert_equal(shop.plan, "customers", "orders")
    path.write_text(before)
    assert not drain(shop.plan, budget=LARGE).refused
    assert in_order(shop.plan, "order_lines")
    assert_equal(shop.plan)


def test_a_contract_that_was_never_right_is_captured_once_it_is(shop: Shop) -> None:
    shop.edit("customers", "- name: full_name", "- name: whole_name")
    result = drain(shop.plan, budget=LARGE)
    assert list(result.refused) == ["shop.customers"]
    assert_equal(shop.plan, "orders", "order_lines")
    shop.step(60)
    drain(shop.plan, budget=LARGE)
    shop.edit("customers", "- name: whole_name", "- name: full_name")
    shop.step(20)
    assert not drain(shop.plan, budget=LARGE).refused
    assert_equal(shop.plan)
    assert shop.mesh.open("sales.customers").polars().height > 0


def test_a_domain_without_any_right_contract_says_so(shop: Shop) -> None:
    for product in ("customers", "orders"):
        shop.edit(product, "kind: DataContract", "kind: Contract")
    with pytest.raises(ContractError) as error:
        _ = shop.plan
    assert "customers/contract.yaml:2" in str(error.value)
    assert "orders/contract.yaml:2" in str(error.value)
    assert ("sales", "app") not in shop.mesh.captured_sources()


def test_a_source_without_any_right_contract_keeps_its_slot_and_says_so(shop: Shop) -> None:
    drain(shop.plan, budget=LARGE)
    for product in ("customers", "orders"):
        shop.edit(product, "kind: DataContract", "kind: Contract")
    shop.step(20)
    assert ("sales", "app") in shop.mesh.captured_sources()
    status = shop.mesh.source_status("sales", "app")
    assert status.state == "no product"
    assert status.head is not None
    assert status.head.retained_bytes > 0
    assert "no shift captures it" in str(status.problem)
    assert "MiB of WAL" in str(status.problem)
    with Source(SourceConfig("sales", "app", shop.url, (), "mesh_sales_app", "mesh_sales_app")) as source:
        source.drop_slot()
    assert shop.mesh.source_status("sales", "app").problem is None


# -- the disk -----------------------------------------------------------------------------------


def private_mount() -> list[str] | None:
    """The command that runs another with mounts of its own; None where that is not permitted."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        try:
            tried = subprocess.run(
                [*command, "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"],
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            return None
        if tried.returncode == 0:
            return command
    return None


@pytest.mark.slow
def test_a_full_disk_acknowledges_nothing_and_loses_nothing(database_url: str, tmp_path: Path) -> None:
    command = private_mount()
    if command is None:
        pytest.skip("this user may not mount a small file system of its own (unshare --mount)")
    workload.create(database_url)
    mount = tmp_path / "small"
    mount.mkdir()
    script = 'mount -t tmpfs -o size=24m none "$3" && exec "$1" -m tests.ingest.full_disk "$2" "$3"'
    done = subprocess.run(
        [*command, "sh", "-c", script, "sh", sys.executable, database_url, str(mount)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["full"], "no shift met a full disk"
    for message in report["full"]:
        assert str(mount) in message
        assert "nothing was acknowledged" in message
    assert report["moved"] == []
    assert report["differing"] == []

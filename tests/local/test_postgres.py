"""The embedded cluster: life, crashes, ports, passwords."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from mesh_assets.errors import MeshNotRunning, SettingError
from mesh_assets.local.installation import Account, Installation, prepare_folder
from mesh_assets.local.postgres import Cluster

OPTIONS = {"fsync": "off"}


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account can enter when the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="mesh-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="module")
def cluster(open_folder: Path) -> Iterator[Cluster]:
    """A cluster that these tests may stop and kill."""
    made = Cluster(open_folder / "own", shared_buffers_mb=16, options=OPTIONS)
    yield made
    made.remove()


@pytest.fixture
def running(cluster: Cluster) -> Cluster:
    return cluster.start()


def test_a_database_keeps_its_rows_over_stop_and_start(running: Cluster) -> None:
    url = running.create_database("kept")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    port = running.port
    running.stop()
    assert not running.status().running
    running.start()
    assert running.port == port
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_the_server_is_set_up_for_capture(running: Cluster) -> None:
    wanted = {
        "wal_level": "logical",
        "data_checksums": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
    }
    with running.connect() as connection:
        got = {name: connection.execute(f"SHOW {name}").fetchone() for name in wanted}
        slots = connection.execute("SHOW max_replication_slots").fetchone()
    assert got == {name: (value,) for name, value in wanted.items()}
    assert slots is not None
    assert int(slots[0]) >= 20


def test_a_second_start_reuses_the_running_server(running: Cluster) -> None:
    pid = running.status().pid
    assert Cluster(running.folder, shared_buffers_mb=16, options=OPTIONS).start().status().pid == pid


def test_other_settings_restart_the_server(running: Cluster) -> None:
    pid = running.status().pid
    other = Cluster(running.folder, shared_buffers_mb=16, options={**OPTIONS, "work_mem": "5MB"}).start()
    assert other.status().pid != pid
    with other.connect() as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)


def test_it_starts_again_after_a_kill(running: Cluster) -> None:
    with running.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS survivor (id int)")
    running.kill()
    assert not running.status().running
    running.start()
    with running.connect() as connection:
        assert connection.execute("SELECT count(*) FROM survivor").fetchone() == (0,)


def test_backends_without_postmaster_are_cleared_away(running: Cluster) -> None:
    with running.connect() as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        backend = psutil.Process(row[0])
        # Suspended, the backend cannot notice that its postmaster died.
        backend.suspend()
        os.kill(running.status().pid or 0, signal.SIGKILL)
        running.start()
        # A container's first process may not bury it.
        assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    with running.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_lock_file_with_another_living_process_is_stale(cluster: Cluster) -> None:
    cluster.start()
    cluster.kill()
    lock = cluster.data / "postmaster.pid"
    lines = lock.read_text().splitlines(keepends=True)
    lock.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    assert not cluster.status().running
    assert cluster.start().status().running


def test_a_taken_port_is_left_alone(cluster: Cluster) -> None:
    cluster.start()
    cluster.stop()
    with socket.socket() as occupant:
        occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        occupant.bind(("127.0.0.1", cluster.port))
        occupant.listen()
        taken = cluster.port
        cluster.start()
        assert cluster.port != taken
    with cluster.connect() as connection:
        assert connection.execute("SHOW port").fetchone() == (str(cluster.port),)


def test_a_fixed_port_that_is_taken_is_an_error_with_the_log(open_folder: Path) -> None:
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        fixed = Cluster(
            open_folder / "fixed", occupant.getsockname()[1], shared_buffers_mb=16, options=OPTIONS
        )
        with pytest.raises(SettingError, match="Address already in use"):
            fixed.start()
    fixed.remove()


def test_no_connection_without_the_password(running: Cluster) -> None:
    wrong = running.url().replace(running.password(), "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    rules = [
        line.split()
        for line in (running.data / "pg_hba.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert {rule[-1] for rule in rules} == {"scram-sha-256"}
    secret = running.folder / "secrets" / "postgres"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_roles_are_made_once_and_keep_their_password(running: Cluster) -> None:
    running.create_role("visitor")
    password = running.password("visitor")
    running.create_role("visitor")
    assert running.password("visitor") == password
    (running.folder / "secrets" / "visitor").unlink()
    running.create_role("visitor")
    assert running.password("visitor") != password
    with psycopg.connect(running.url(role="visitor")) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("visitor",)


def test_a_database_is_dropped_with_its_slots_and_connections(running: Cluster) -> None:
    url = running.create_database("doomed")
    connection = psycopg.connect(url, autocommit=True)
    connection.execute("SELECT pg_create_logical_replication_slot('doomed', 'pgoutput')")
    running.drop_database("doomed")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
    with running.connect() as admin:
        assert admin.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)


def test_a_large_log_is_set_aside(cluster: Cluster) -> None:
    cluster.start()
    cluster.stop()
    with cluster.log.open("a") as log:
        log.truncate(20 << 20)
    cluster.start()
    assert cluster.log.stat().st_size < 1 << 20
    assert cluster.log.with_suffix(".log.1").exists()


def test_an_unfinished_initialisation_is_done_again(open_folder: Path) -> None:
    cluster = Cluster(open_folder / "unfinished", shared_buffers_mb=16, options=OPTIONS)
    prepare_folder(cluster.folder)
    installation = Installation.locate(cluster.folder)
    installation.prepare()
    (installation.server / "unfinished").mkdir()
    (installation.server / "unfinished" / "PG_VERSION").write_text("18\n")
    with cluster, cluster.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    cluster.remove()
    assert not cluster.folder.exists()


def test_a_cluster_that_never_started_says_so(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "none")
    assert not cluster.status().running
    assert cluster.status().port is None
    cluster.stop()
    with pytest.raises(MeshNotRunning, match="make up"):
        cluster.url()


def test_an_account_enters_only_what_its_mode_bits_allow(tmp_path: Path) -> None:
    stranger = Account("stranger", uid=54_321, gid=54_321)
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("")
    assert not stranger.enters(tmp_path)
    assert not stranger.reads(tmp_path / "file")
    owner = Account("owner", uid=os.getuid(), gid=os.getgid())
    assert owner.reads(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another account")
def test_roots_private_folder_gets_a_place_that_postgres_reaches(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    cluster = Cluster(tmp_path / "private", shared_buffers_mb=16, options=OPTIONS)
    with cluster, cluster.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert not cluster.data.is_relative_to(cluster.folder)
        assert (cluster.folder / "server" / "data").resolve() == cluster.data
    place = cluster.data.parent.parent
    assert place.exists()
    cluster.remove()
    assert not place.exists()


def test_data_whose_password_is_lost_is_not_touched(open_folder: Path) -> None:
    cluster = Cluster(open_folder / "lost", shared_buffers_mb=16, options=OPTIONS)
    cluster.initialise()
    (cluster.folder / "secrets" / "postgres").unlink()
    with pytest.raises(SettingError, match=r"password .* is gone"):
        cluster.start()
    assert (cluster.data / "PG_VERSION").exists()
    cluster.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another account")
def test_what_a_deleted_home_left_elsewhere_is_replaced(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    cluster = Cluster(tmp_path / "deleted", shared_buffers_mb=16, options=OPTIONS)
    first = cluster.start().status().pid
    shutil.rmtree(cluster.folder)
    with cluster, cluster.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert cluster.status().pid != first
    cluster.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another account")
def test_unreachable_programs_are_copied(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mesh_assets.local import installation

    real = installation.packaged_programs()
    monkeypatch.setattr(installation, "packaged_programs", lambda: real)
    monkeypatch.setattr(Account, "reads", lambda self, file: False)
    cluster = Cluster(open_folder / "copied", shared_buffers_mb=16, options=OPTIONS)
    with cluster, cluster.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        program = psutil.Process(cluster.status().pid).exe()
    assert not Path(program).is_relative_to(real)
    cluster.remove()
    assert not Path(program).exists()


def test_folders_that_two_clusters_prepare_at_once(tmp_path: Path) -> None:
    for number in range(20):
        folders = [tmp_path / str(number) / "home" / "clusters" / name for name in "abcdefgh"]
        with ThreadPoolExecutor(len(folders)) as pool:
            list(pool.map(prepare_folder, folders))
        assert all(folder.is_dir() for folder in folders)

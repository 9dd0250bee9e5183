"""The source of the benchmarks: a PostgreSQL cluster of their own and an application's changes.

The mix is 60 inserts, 30 updates and 10 deletes per transaction, interleaved in rounds of ten. Keys
are dense: inserts take the next, deletes the oldest, updates three spread over all that are left.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from mesh_assets.local.postgres import Cluster

DATABASE = "sales"
TABLE = "shop.orders"
PUBLICATION = "benchmark"
CHANGES_PER_TRANSACTION = 100

_FIRST_ROWS = 1_000
_TRANSACTIONS_PER_CALL = 100

_SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (
    order_id bigint PRIMARY KEY,
    customer_id bigint NOT NULL,
    status text NOT NULL,
    currency char(3) NOT NULL,
    amount numeric(14,2) NOT NULL,
    note text,
    updated_at timestamptz NOT NULL
);
CREATE FUNCTION shop.add_orders(first bigint, last bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO shop.orders
    SELECT n, n * 7919 % 50000, (ARRAY['new','paid','picked','shipped'])[1 + n % 4],
           (ARRAY['EUR','USD','GBP'])[1 + n % 3], (n * 104729 % 9000000) / 100.0,
           CASE WHEN n % 3 > 0 THEN 'order ' || n || ' of customer ' || n * 7919 % 50000 END,
           clock_timestamp()
    FROM generate_series(first, last) n
$$;
-- One transaction of ten rounds: six inserts, three updates, one delete.
CREATE PROCEDURE shop.mix(transaction_count int, INOUT oldest bigint, INOUT newest bigint)
LANGUAGE plpgsql AS $$
DECLARE
    third bigint;
    chosen bigint[];
BEGIN
    FOR transaction_number IN 1 .. transaction_count LOOP
        FOR round IN 1 .. 10 LOOP
            PERFORM shop.add_orders(newest + 1, newest + 6);
            newest := newest + 6;
            DELETE FROM shop.orders WHERE order_id = oldest;
            oldest := oldest + 1;
            third := (newest - oldest) / 3;
            chosen := ARRAY[
                oldest + (random() * (third - 1))::bigint,
                oldest + (random() * (third - 1))::bigint + third,
                oldest + (random() * (third - 1))::bigint + third * 2
            ];
            UPDATE shop.orders
            SET status = 'changed', amount = amount + 1.25, updated_at = clock_timestamp()
            WHERE order_id = ANY (chosen);
        END LOOP;
        COMMIT;
    END LOOP;
END
$$;
"""


@dataclass(frozen=True)
class Backlog:
    """Changes that wait in the WAL for their reader.

    Attributes:
        url: the database.
        slot: a slot that stands before the first of them.
        row_count: how many changes.
        row_count_by_op: the same by ``c``, ``u``, ``d``.
        end_lsn: WAL position behind the last of them, as a number.
        wal_bytes: WAL that was written meanwhile.
    """

    url: str
    slot: str
    row_count: int
    row_count_by_op: dict[str, int]
    end_lsn: int
    wal_bytes: int


@contextmanager
def source_cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster for one benchmark, with PostgreSQL's own durability, removed at the end."""
    cluster = Cluster(
        folder / "postgres",
        # No checkpoint falls into a measurement.
        options={"max_wal_size": "16GB", "checkpoint_timeout": "1h"},
    )
    # Left by a run that was killed.
    cluster.remove()
    try:
        yield cluster.start()
    finally:
        cluster.remove()
        shutil.rmtree(folder / "postgres", ignore_errors=True)


def create_orders(cluster: Cluster) -> str:
    """Make the database with its table and first rows; returns its URL."""
    url = cluster.create_database(DATABASE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SCHEMA)
        connection.execute("SELECT shop.add_orders(1, %s)", (_FIRST_ROWS,))
        connection.execute("VACUUM ANALYZE shop.orders")
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {TABLE}")
    return url


def create_slot(url: str, slot: str) -> None:
    """Make a logical slot that stands at the present end of the WAL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))


def copy_slot(url: str, slot: str, copy: str) -> str:
    """Make a slot that reads the same WAL as ``slot`` from the same place; returns its name."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (slot, copy))
    return copy


def drop_slot(url: str, slot: str) -> None:
    """Drop a slot that nobody reads any more, once its walsender has let go of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots "
            "WHERE slot_name = %s AND active_pid IS NOT NULL",
            (slot,),
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
            (slot,),
        )


def write_backlog(
    url: str, slot: str, row_count: int, on_progress: Callable[[int], None] | None = None
) -> Backlog:
    """Write ``row_count`` mixed changes (rounded to whole transactions) behind ``slot``."""
    transaction_count = max(1, row_count // CHANGES_PER_TRANSACTION)
    with psycopg.connect(url, autocommit=True) as connection:
        # Only the writer's own speed: the WAL is flushed before anyone reads it.
        connection.execute("SET synchronous_commit = off")
        connection.execute("SELECT setseed(0.5)")
        before = _wal_position(connection)
        row = connection.execute("SELECT min(order_id), max(order_id) FROM shop.orders").fetchone()
        assert row is not None
        written = 0
        while written < transaction_count:
            count = min(_TRANSACTIONS_PER_CALL, transaction_count - written)
            row = connection.execute("CALL shop.mix(%s, %s, %s)", (count, *row)).fetchone()
            assert row is not None
            written += count
            if on_progress:
                on_progress(written * CHANGES_PER_TRANSACTION)
        connection.execute("SET synchronous_commit = on")
        connection.execute("SELECT pg_logical_emit_message(true, 'benchmark', 'flush')")
        end = _wal_position(connection)
    written *= CHANGES_PER_TRANSACTION
    return Backlog(url, slot, written, count_of_first(written), end, end - before)


def count_of_first(row_count: int) -> dict[str, int]:
    """How many of each op are among the first changes of a backlog: rounds of six c, one d, three u."""
    rounds, rest = divmod(row_count, 10)
    return {
        "c": rounds * 6 + min(rest, 6),
        "u": rounds * 3 + max(rest - 7, 0),
        "d": rounds + (rest > 6),
    }


def _wal_position(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
    assert row is not None
    return int(str(row[0]))

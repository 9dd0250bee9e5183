"""What the decoder makes of a stream: operations, positions, cuts, parking, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mesh_assets.cdc.decode import Batch, Decoder
from mesh_assets.cdc.relation import Relation
from mesh_assets.cdc.type import PostgresType
from mesh_assets.errors import (
    PublicationMissing,
    SlotLost,
    SourceDisconnected,
    SourceError,
)
from tests.cdc import pgoutput
from tests.cdc.pgoutput import Toast

INT8, TEXT, TEXT_ARRAY, BYTEA = 20, 25, 1009, 17
ORDERS = [("id", INT8, -1, True), ("note", TEXT, -1, False), ("tags", TEXT_ARRAY, -1, False)]
OID = 7


def unexpected(oid: int, typmod: int) -> PostgresType:
    raise AssertionError(f"type {oid} ({typmod}) is PostgreSQL's own")


def decode(decoder: Decoder, data: bytes) -> int:
    return decoder.decode(np.frombuffer(data, np.uint8), 0, len(data))


def taken(*messages: bytes, decoder: Decoder | None = None) -> Batch:
    decoder = decoder or Decoder(unexpected)
    data = pgoutput.stream(messages)
    assert decode(decoder, data) == len(data)
    batch = decoder.take()
    for relation, frame in batch.segments:
        frame.validate(full=True)
        assert frame.schema == relation.frame_schema
    return batch


def transaction(*messages: bytes, lsn: int = 100) -> list[bytes]:
    return [pgoutput.begin(lsn, xid=9), *messages, pgoutput.commit(lsn, lsn + 10)]


def orders(identity: str = "d") -> bytes:
    return pgoutput.relation(OID, "shop", "orders", identity, ORDERS)


def rows(batch: Batch, *columns: str) -> list[tuple[Any, ...]]:
    (segment,) = batch.segments
    frame = segment[1].select(columns)
    return list(zip(*(frame[name].to_pylist() for name in columns), strict=True))


def test_operations_in_order() -> None:
    batch = taken(
        *transaction(
            orders(),
            pgoutput.insert(OID, ["1", "a", "{x,y}"]),
            pgoutput.update(OID, ["1", "b", None]),
            pgoutput.delete(OID, ["1", None, None]),
            pgoutput.truncate([OID]),
        )
    )
    assert rows(batch, "_op", "id", "note", "tags", "_position", "_ordinal", "_xid") == [
        ("c", 1, "a", ["x", "y"], 100, 0, 9),
        ("u", 1, "b", None, 100, 1, 9),
        ("d", 1, None, None, 100, 2, 9),
        ("t", None, None, None, 100, 3, 9),
    ]
    assert rows(batch, "_before") == [
        (None,),
        (None,),
        ({"id": 1, "note": None, "tags": None},),
        (None,),
    ]
    assert (batch.position, batch.commit_lsn, batch.end_lsn) == ((100, 3), 100, 110)
    assert (batch.row_count, batch.transaction_count, batch.in_transaction) == (4, 1, False)
    assert batch.announced == (OID,)


def test_key_move_is_delete_and_insert() -> None:
    batch = taken(*transaction(orders(), pgoutput.update(OID, ["2", "a", None], ["1", None, None])))
    key = {"id": 1, "note": None, "tags": None}
    assert rows(batch, "_op", "id", "note", "_ordinal", "_before") == [
        ("d", 1, None, 0, key),
        ("c", 2, "a", 1, key),
    ]


def test_full_identity_moves_only_when_the_key_differs() -> None:
    decoder = Decoder(unexpected, key_of=lambda oid, schema, name: ("id",))
    batch = taken(
        *transaction(
            orders("f"),
            pgoutput.update(OID, ["1", "b", None], ["1", "a", None], b"O"),
            pgoutput.update(OID, ["2", "b", None], ["1", "b", None], b"O"),
            pgoutput.delete(OID, ["2", "b", None], b"O"),
        ),
        decoder=decoder,
    )
    assert rows(batch, "_op", "id", "note", "_ordinal") == [
        ("u", 1, "b", 0),
        ("d", 1, "b", 1),
        ("c", 2, "b", 2),
        ("d", 2, "b", 3),
    ]
    assert [before["note"] for (before,) in rows(batch, "_before")] == ["a", "b", "b", "b"]
    assert decoder.relations[OID].key == ("id",)


def test_full_identity_without_a_key_never_moves() -> None:
    batch = taken(*transaction(orders("f"), pgoutput.update(OID, ["2", "b", None], ["1", "b", None], b"O")))
    assert rows(batch, "_op", "id") == [("u", 2)]
    assert batch.segments[0][0].key == ()


def test_unchanged_toast_is_named() -> None:
    batch = taken(
        *transaction(
            orders(),
            pgoutput.update(OID, ["1", Toast.UNCHANGED, Toast.UNCHANGED]),
            pgoutput.update(OID, ["1", "n", Toast.UNCHANGED]),
            pgoutput.update(OID, ["1", "n", None]),
            pgoutput.update(OID, ["2", Toast.UNCHANGED, None], ["1", None, None]),
        )
    )
    assert rows(batch, "_op", "note", "_unchanged") == [
        ("u", None, ["note", "tags"]),
        ("u", "n", ["tags"]),
        ("u", "n", None),
        ("d", None, None),
        ("c", None, ["note"]),
    ]


def test_old_tuple_supplies_what_the_new_one_leaves_out() -> None:
    batch = taken(
        *transaction(
            orders("f"),
            pgoutput.update(OID, ["1", Toast.UNCHANGED, None], ["1", "long", None], b"O"),
        )
    )
    assert rows(batch, "_op", "note", "_unchanged") == [("u", "long", None)]


def test_old_key_of_an_unmoved_row_is_no_move() -> None:
    # PostgreSQL also sends the old key when a key column is stored out of line.
    batch = taken(
        *transaction(
            pgoutput.relation(OID, "shop", "labels", "d", [("label", TEXT, -1, True)]),
            pgoutput.update(OID, [Toast.UNCHANGED], ["long"]),
        )
    )
    assert rows(batch, "_op", "label", "_unchanged") == [("u", "long", None)]


def test_out_of_range_values_stay_exact() -> None:
    columns = [
        ("id", INT8, -1, True),
        ("amount", 1700, 786438, False),
        ("at", 1184, -1, False),
        ("tags", 1007, -1, False),
        ("on", 1082, -1, False),
    ]
    batch = taken(
        *transaction(
            pgoutput.relation(OID, "shop", "odd", "f", columns),
            pgoutput.insert(OID, ["1", "NaN", "infinity", "{{1,2},{3,4}}", "0044-03-15 BC"]),
            pgoutput.insert(OID, ["2", "1.50", "2024-02-29 10:00:00.5+00", "{1,NULL}", "2024-02-29"]),
            pgoutput.update(OID, ["3", "NaN", None, "{}", None], ["3", "1", "-infinity", "{}", None], b"O"),
        )
    )
    exact = [None if one is None else dict(one) for (one,) in rows(batch, "_exact")]
    assert exact == [
        {"amount": "NaN", "at": "infinity", "tags": "{{1,2},{3,4}}", "on": "0044-03-15 BC"},
        None,
        {"amount": "NaN", "_before.at": "-infinity"},
    ]
    assert rows(batch, "tags") == [(None,), ([1, None],), ([],)]


def test_tables_interleaved_share_one_ordinal() -> None:
    other = pgoutput.relation(8, "shop", "lines", "d", [("id", INT8, -1, True)])
    batch = taken(
        *transaction(
            orders(),
            other,
            pgoutput.insert(8, ["1"]),
            pgoutput.insert(OID, ["1", None, None]),
            pgoutput.insert(8, ["2"]),
            pgoutput.truncate([OID, 8]),
        )
    )
    found = {
        relation.name: list(zip(frame["_op"].to_pylist(), frame["_ordinal"].to_pylist(), strict=True))
        for relation, frame in batch.segments
    }
    assert found == {"lines": [("c", 0), ("c", 2), ("t", 4)], "orders": [("c", 1), ("t", 3)]}
    assert [relation.name for relation, _ in batch.segments] == ["lines", "orders"]


def test_changed_relation_cuts_and_unchanged_does_not() -> None:
    wider = pgoutput.relation(OID, "shop", "orders", "d", [*ORDERS, ("more", INT8, -1, False)])
    batch = taken(
        *transaction(
            orders(),
            pgoutput.insert(OID, ["1", None, None]),
            orders(),
            pgoutput.insert(OID, ["2", None, None]),
            wider,
            pgoutput.insert(OID, ["3", None, None, "5"]),
            orders(),
            pgoutput.insert(OID, ["4", None, None]),
        )
    )
    assert [frame["id"].to_pylist() for _, frame in batch.segments] == [[1, 2], [3], [4]]
    assert [len(relation.columns) for relation, _ in batch.segments] == [3, 4, 3]


def test_transaction_larger_than_a_batch() -> None:
    decoder = Decoder(unexpected)
    first = taken(pgoutput.begin(100), orders(), pgoutput.insert(OID, ["1", None, None]), decoder=decoder)
    assert (first.in_transaction, first.end_lsn, first.position) == (True, 0, (100, 0))
    second = taken(pgoutput.insert(OID, ["2", None, None]), pgoutput.commit(100, 110), decoder=decoder)
    assert (second.in_transaction, second.end_lsn, second.position) == (False, 110, (100, 1))
    assert rows(second, "id", "_ordinal") == [(2, 1)]
    empty = decoder.take()
    assert (empty.segments, empty.position, empty.row_count) == ([], (0, -1), 0)


def test_progress_without_changes() -> None:
    decoder = Decoder(unexpected)
    data = pgoutput.frame(pgoutput.logical_message(500)) + pgoutput.keepalive(400, reply=True)
    decode(decoder, data)
    assert (decoder.wal_end, decoder.reply_requested, decoder.row_count) == (500, True, 0)
    decoder.reply_requested = False
    assert not decoder.reply_requested
    batch = taken(
        *transaction(pgoutput.logical_message(90, transactional=True), pgoutput.origin(), pgoutput.type_(99)),
        decoder=decoder,
    )
    assert (batch.end_lsn, batch.transaction_count, batch.wal_end) == (110, 1, 500)


def test_frames_larger_than_the_arena() -> None:
    long = "x" * (9 << 20)
    decoder = Decoder(unexpected)
    batch = taken(
        *transaction(
            orders(),
            pgoutput.insert(OID, ["1", "small", None]),
            pgoutput.insert(OID, ["2", long, None]),
            pgoutput.insert(OID, ["3", "small", None]),
        ),
        decoder=decoder,
    )
    assert rows(batch, "id") == [(1,), (2,), (3,)]
    assert batch.segments[0][1]["note"][1].as_py() == long


def test_incomplete_frames_wait() -> None:
    data = pgoutput.stream(transaction(orders(), pgoutput.insert(OID, ["1", "a", None])))
    buffer = np.zeros(len(data) + 100, np.uint8)
    decoder = Decoder(unexpected)
    start = end = 0
    for byte in data:
        buffer[end] = byte
        end += 1
        start = decoder.decode(buffer, start, end)
    buffer[:] = 255  # The caller may reuse what was decoded.
    assert start == end
    assert rows(decoder.take(), "id", "note") == [(1, "a")]


def test_flushes_smaller_than_a_batch() -> None:
    decoder = Decoder(unexpected, max_rows_per_flush=3)
    inserts = [pgoutput.insert(OID, [str(number), None, None]) for number in range(20)]
    batch = taken(*transaction(orders(), *inserts, pgoutput.truncate([OID])), decoder=decoder)
    assert [one for (one,) in rows(batch, "id")] == [*range(20), None]


def test_truncate_of_more_tables_than_a_flush_has_rows() -> None:
    decoder = Decoder(unexpected, max_rows_per_flush=2)
    oids = list(range(10, 110))
    announced = [pgoutput.relation(oid, "s", f"t{oid}", "d", [("id", INT8, -1, True)]) for oid in oids]
    batch = taken(*transaction(*announced, pgoutput.truncate(oids)), decoder=decoder)
    assert [frame["_ordinal"].to_pylist() for _, frame in batch.segments] == [[one] for one in range(100)]


# Parking.


def test_parked_relation_is_kept_raw_and_replayed() -> None:
    other = pgoutput.relation(8, "shop", "lines", "d", [("id", INT8, -1, True)])
    messages = transaction(
        orders(),
        other,
        pgoutput.insert(OID, ["1", "a", None]),
        pgoutput.insert(8, ["1"]),
        pgoutput.update(OID, ["2", "b", None], ["1", None, None]),
        pgoutput.insert(8, ["2"]),
        pgoutput.truncate([8, OID]),
        pgoutput.insert(OID, ["3", "c", None]),
    )
    whole = taken(*messages)
    decoder = Decoder(unexpected)
    decoder.parked.add(OID)
    batch = taken(*messages, decoder=decoder)

    assert [relation.name for relation, _ in batch.segments] == ["lines"]
    assert batch.segments[0][1].equals(next(frame for one, frame in whole.segments if one.oid == 8))
    ((oid, raw),) = batch.parked
    assert (oid, raw["kind"].to_pylist()) == (OID, ["R", "I", "U", "T", "I"])
    assert raw["_ordinal"].to_pylist() == [0, 0, 2, 6, 7]
    assert raw["message"][1].as_py() == messages[3]
    assert (batch.row_count, batch.position) == (7, (100, 7))

    replayed = Decoder(unexpected)
    replayed.replay(OID, raw)
    ((relation, frame),) = replayed.take().segments
    assert frame.equals(next(frame for one, frame in whole.segments if one.oid == OID))
    assert relation == decoder.relations[OID]


def test_parking_later_brings_the_announcement() -> None:
    decoder = Decoder(unexpected)
    taken(*transaction(orders(), pgoutput.insert(OID, ["1", None, None])), decoder=decoder)
    decoder.parked.add(OID)
    batch = taken(*transaction(pgoutput.insert(OID, ["2", None, None]), lsn=200), decoder=decoder)
    ((_, raw),) = batch.parked
    assert raw["kind"].to_pylist() == ["R", "I"]
    decoder.parked.remove(OID)
    batch = taken(*transaction(pgoutput.insert(OID, ["3", None, None]), lsn=300), decoder=decoder)
    assert rows(batch, "id") == [(3,)]
    assert batch.parked == []


def test_what_is_not_accepted_is_parked_before_its_first_change() -> None:
    wider = pgoutput.relation(OID, "shop", "orders", "d", [*ORDERS, ("more", INT8, -1, False)])

    def accept(relation: Relation) -> bool:
        return len(relation.columns) == 3

    batch = taken(
        *transaction(
            orders(),
            pgoutput.insert(OID, ["1", None, None]),
            wider,
            pgoutput.insert(OID, ["2", None, None, "1"]),
        ),
        decoder=Decoder(unexpected, accept=accept),
    )
    assert rows(batch, "id") == [(1,)]
    assert batch.parked[0][1]["kind"].to_pylist() == ["R", "I"]


def test_a_relation_that_cannot_be_described_is_parked() -> None:
    decoder = Decoder(unexpected)
    reserved = pgoutput.relation(OID, "shop", "orders", "d", [("_op", TEXT, -1, True)])
    batch = taken(*transaction(reserved, pgoutput.insert(OID, ["x"])), decoder=decoder)
    assert batch.segments == []
    assert batch.parked[0][1]["kind"].to_pylist() == ["R", "I"]
    assert "underscore" in str(decoder.refused[OID])
    assert decoder.names == {OID: "shop.orders"}
    decoder.parked.clear()
    batch = taken(*transaction(pgoutput.insert(OID, ["x"]), lsn=200), decoder=decoder)
    assert batch.segments == []


def test_replay_without_an_announcement_is_an_error() -> None:
    decoder = Decoder(unexpected)
    decoder.parked.add(OID)
    batch = taken(*transaction(orders(), pgoutput.insert(OID, ["1", None, None])), decoder=decoder)
    with pytest.raises(SourceError, match="not announced"):
        Decoder(unexpected).replay(OID, batch.parked[0][1].slice(1))


# Types.


def test_user_types_are_resolved_once() -> None:
    asked: list[tuple[int, int]] = []

    def resolve(oid: int, typmod: int) -> PostgresType:
        asked.append((oid, typmod))
        numeric = PostgresType(1700, 786438, "numeric(12,2)")
        return PostgresType(oid, typmod, "money_amount", base=numeric)

    columns = [("id", INT8, -1, True), ("price", 50_000, -1, False)]
    message = pgoutput.relation(OID, "shop", "prices", "d", columns)
    batch = taken(
        *transaction(message, message, pgoutput.insert(OID, ["1", "2.50"])), decoder=Decoder(resolve)
    )
    assert asked == [(50_000, -1)]
    assert batch.segments[0][0].columns[1].arrow == pa.decimal128(12, 2)


# Refusals.


def failing(data: bytes, error: type[SourceError], match: str) -> None:
    decoder = Decoder(unexpected)
    before = pgoutput.stream(transaction(orders(), pgoutput.insert(OID, ["1", None, None])))
    with pytest.raises(error, match=match):
        decode(decoder, before + data)
    assert rows(decoder.take(), "id") == [(1,)]


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        ("57P01", "terminating connection due to administrator command", SourceDisconnected),
        ("42704", 'publication "mesh" does not exist', PublicationMissing),
        ("55000", "can no longer access replication slot", SlotLost),
        ("XX000", "cache lookup failed", SourceError),
    ],
)
def test_the_servers_error_is_shown(code: str, message: str, error: type[SourceError]) -> None:
    failing(pgoutput.error(code, message), error, message.split('"')[0])


def test_half_an_error_waits() -> None:
    decoder = Decoder(unexpected)
    assert decode(decoder, pgoutput.error("57P01", "terminating")[:-3]) == 0


def test_the_end_of_the_copy_is_a_disconnect() -> None:
    failing(b"c\0\0\0\4", SourceDisconnected, "ended the replication stream")


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (b"?what", "kind"),
        (pgoutput.insert(OID, ["1", None, None]), "transaction"),
        (pgoutput.begin(1)[:-1], "length"),
        (pgoutput.begin(1) + b"x", "length"),
        (pgoutput.commit(1, 2), "transaction"),
        (b"R\0\0", "Relation message"),
        (orders()[:-2], "Relation message"),
    ],
)
def test_a_broken_message_names_its_lsn(message: bytes, match: str) -> None:
    failing(pgoutput.frame(message, lsn=0x1_0000_00FF), SourceError, f"(?s)1/FF.*{match}|{match}.*1/FF")


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (pgoutput.insert(99, ["1"]), "not announced"),
        (pgoutput.truncate([99]), "not announced"),
        (pgoutput.insert(OID, ["1"]), "number of columns"),
        (pgoutput.insert(OID, ["1", None, None])[:-1], "length"),
        (pgoutput.insert(OID, ["1", None, None]) + b"x", "after its end"),
        (pgoutput.insert(OID, ["1", None, None]).replace(b"nn", b"nb"), "text format"),
        (pgoutput.delete(OID, ["1", None, None], b"N"), "tuple"),
        (pgoutput.begin(5), "transaction"),
        (b"I", "length"),
    ],
)
def test_a_broken_change_is_refused(message: bytes, match: str) -> None:
    decoder = Decoder(unexpected)
    head = [pgoutput.begin(100), orders()]
    with pytest.raises(SourceError, match=match):
        decode(decoder, pgoutput.stream([*head, message]))


def test_text_that_is_not_utf8_names_table_column_and_commit() -> None:
    decoder = Decoder(unexpected)
    broken = pgoutput.insert(OID, ["1", "é", None]).replace("é".encode(), b"\xff\xfe")
    decode(decoder, pgoutput.stream(transaction(orders(), broken)))
    with pytest.raises(SourceError, match=r"shop\.orders.*0/64.*'note'.*UTF-8"):
        decoder.take()
    # What comes after the lost rows must not be taken as if they had never been.
    decode(decoder, pgoutput.stream(transaction(pgoutput.insert(OID, ["2", "b", None]), lsn=200)))
    with pytest.raises(SourceError, match="UTF-8"):
        decoder.take()


def test_a_broken_parked_message_leaves_what_came_before() -> None:
    decoder = Decoder(unexpected)
    decoder.parked.add(OID)
    inserts = [pgoutput.insert(OID, [str(number), "x" * 100, None]) for number in range(3)]
    ((_, raw),) = taken(*transaction(orders(), *inserts), decoder=decoder).parked
    messages = raw["message"].to_pylist()
    messages[-1] = messages[-1][:-1]
    broken = raw.set_column(0, "message", pa.array(messages, pa.binary()))
    replayed = Decoder(unexpected)
    with pytest.raises(SourceError, match="length"):
        replayed.replay(OID, broken)
    assert rows(replayed.take(), "id") == [(0,), (1,)]

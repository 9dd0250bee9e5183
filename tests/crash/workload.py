"""A random but reproducible application: what real ones do to a database, from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import psycopg
from psycopg import sql

SCHEMA = """
create schema shop;
create type shop.mood as enum ('sad', 'ok', 'happy');
create table shop.item (
  id int primary key, name text, price numeric(12,2), ratio double precision, mood shop.mood,
  tags text[], note text, made_at timestamptz, details jsonb
);
alter table shop.item alter column note set storage external;
create table shop.line (
  item_id int, number int, quantity int, remark text, primary key (item_id, number)
);
create table shop.badge (
  code text primary key, owner text, payload text, blob bytea, valid_on date
);
alter table shop.badge replica identity full;
alter table shop.badge alter column payload set storage external;
"""

TABLES = {
    "shop.item": ("item", ("id",)),
    "shop.line": ("line", ("item_id", "number")),
    "shop.badge": ("badge", ("code",)),
}
"""``schema.table`` -> (table of the product, key)."""


def create(url: str) -> None:
    """Create the application's schema."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA)


class Application:
    """Runs random transactions; the same seed gives the same ones."""

    def __init__(self, url: str, seed: int, *, keys: int = 60, truncates: bool = True) -> None:
        self.random = random.Random(seed)
        self.keys = keys
        self.truncates = truncates
        self.url = url
        self.connection = psycopg.connect(url)
        self.transaction_count = 0

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()

    def reconnect(self) -> None:
        """Begin again on a new connection; whether the last transaction was committed is not known."""
        self.connection.close()
        self.connection = psycopg.connect(self.url)

    def transact(self, count: int) -> None:
        """Run ``count`` transactions of 1 to 12 statements; some roll back, some use savepoints."""
        choose = self.random
        for _ in range(count):
            self.transaction_count += 1
            for _ in range(choose.choice((1, 1, 2, 3, 5, 12))):
                self._statement()
            if choose.random() < 0.1:
                self.connection.execute("savepoint s")
                self._statement()
                self.connection.execute("rollback to savepoint s")
            if choose.random() < 0.1:
                self.connection.rollback()
            else:
                self.connection.commit()

    def _statement(self) -> None:
        ways: list[tuple[int, Callable[[], None]]] = [
            (6, self._put_item),
            (4, self._touch_item),
            (3, self._note_item),
            (3, self._drop_item),
            (2, self._move_item),
            (4, self._put_line),
            (2, self._drop_line),
            (1, self._renumber_line),
            (3, self._put_badge),
            (2, self._touch_badge),
            (1, self._drop_badge),
            (1, self._move_badge),
            (1, self._bulk),
        ]
        if self.truncates and self.random.random() < 0.004:
            self._truncate()
            return
        weights = [weight for weight, _ in ways]
        self.random.choices([way for _, way in ways], weights)[0]()

    def _run(self, text: str, *values: object) -> None:
        self.connection.execute(sql.SQL(text), values)

    def _key(self) -> int:
        return self.random.randrange(self.keys)

    def _text(self, length: int) -> str:
        alphabet = "abcdefghijklmnop qrstuvwxyz'\"\\{},äß漢🙂\n\t"
        return "".join(self.random.choice(alphabet) for _ in range(length))

    def _put_item(self) -> None:
        choose = self.random
        self._run(
            "insert into shop.item values (%s,%s,%s,%s,%s,%s,%s,%s,%s) on conflict (id) do update set "
            "name = excluded.name, price = excluded.price, mood = excluded.mood, made_at = excluded.made_at",
            self._key(),
            choose.choice([None, "", self._text(8)]),
            choose.choice([None, "NaN", f"{choose.uniform(-1e6, 1e6):.2f}"]),
            choose.choice([None, float("nan"), float("inf"), choose.random()]),
            choose.choice([None, "sad", "ok", "happy"]),
            choose.choice([None, [], ["a", None, 'q"\\,{}'], [self._text(4)]]),
            choose.choice([None, self._text(3000)]),
            choose.choice(
                [None, "infinity", "-infinity", "0044-03-15 BC", "2026-02-28 23:59:59.999999+05:30"]
            ),
            choose.choice([None, '{"a": [1, 2.50, null]}']),
        )

    def _touch_item(self) -> None:
        # The note stays as it is: its value is not in the change.
        self._run("update shop.item set name = %s where id = %s", self._text(5), self._key())

    def _note_item(self) -> None:
        self._run(
            "update shop.item set note = %s where id = %s",
            self.random.choice([None, "short", self._text(4000)]),
            self._key(),
        )

    def _drop_item(self) -> None:
        self._run("delete from shop.item where id = %s", self._key())

    def _move_item(self) -> None:
        old, new = self._key(), self._key()
        self._run(
            "update shop.item set id = %s where id = %s and not exists (select from shop.item where id = %s)",
            new,
            old,
            new,
        )

    def _put_line(self) -> None:
        self._run(
            "insert into shop.line values (%s,%s,%s,%s) on conflict (item_id, number) do update set "
            "quantity = excluded.quantity",
            self._key(),
            self.random.randrange(4),
            self.random.randrange(100),
            self._text(6),
        )

    def _drop_line(self) -> None:
        self._run("delete from shop.line where item_id = %s", self._key())

    def _renumber_line(self) -> None:
        self._run(
            "update shop.line set number = number + 10 where item_id = %s and number < 4 and not exists "
            "(select from shop.line other where other.item_id = line.item_id and other.number >= 10)",
            self._key(),
        )

    def _put_badge(self) -> None:
        self._run(
            "insert into shop.badge values (%s,%s,%s,%s,%s) on conflict (code) do update set "
            "owner = excluded.owner",
            f"b{self._key() % 20}",
            self._text(4),
            self.random.choice([None, self._text(3000)]),
            self.random.choice([None, self.random.randbytes(5)]),
            self.random.choice([None, "infinity", "2026-11-22", "0001-01-01 BC"]),
        )

    def _touch_badge(self) -> None:
        self._run("update shop.badge set owner = %s where code = %s", self._text(4), f"b{self._key() % 20}")

    def _drop_badge(self) -> None:
        self._run("delete from shop.badge where code = %s", f"b{self._key() % 20}")

    def _move_badge(self) -> None:
        old, new = f"b{self._key() % 20}", f"b{self._key() % 20}"
        self._run(
            "update shop.badge set code = %s where code = %s and not exists "
            "(select from shop.badge where code = %s)",
            new,
            old,
            new,
        )

    def _bulk(self) -> None:
        self._run("update shop.line set quantity = quantity + 1")

    def _truncate(self) -> None:
        self._run(
            self.random.choice(["truncate shop.line", "truncate shop.line, shop.badge", "truncate shop.item"])
        )

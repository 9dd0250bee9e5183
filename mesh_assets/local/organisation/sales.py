"""Sales: customers place orders, change their minds, and their orders move through their lives."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg.types.json import Jsonb

from mesh_assets.local.organisation import vocabulary
from mesh_assets.local.organisation.application import Action, Application, main

CUSTOMER_COUNT = 2_000
ORDER_COUNT = 4_000
"""Orders that exist from the start; the other domains' first references stay within them."""

_LIFE = ("placed", "paid", "packed", "shipped", "delivered")
_SEGMENTS = ("consumer", "business", "public")
_CURRENCIES = ("EUR", "CHF", "PLN", "GBP", "JPY")
_ORDER_INSERT = "INSERT INTO shop.orders VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
_LINE_INSERT = "INSERT INTO shop.order_lines VALUES (%s, %s, %s, %s, %s, %s)"
_CUSTOMER_INSERT = "INSERT INTO shop.customers VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"


class Sales(Application):
    """Owner of customers and orders."""

    name = "sales"

    def seed(self) -> None:
        self.counters = {"customer": 1, "order": 1}
        self.copy("shop.customers", [self._customer(self.before(400)) for _ in range(CUSTOMER_COUNT)])
        moments = sorted(self.before(90) for _ in range(ORDER_COUNT))
        orders, lines = [], []
        for placed_at in moments:
            order, order_lines = self._order(self.earlier("customer"), placed_at, self.random.choice(_LIFE))
            orders.append(order)
            lines += order_lines
        self.copy("shop.orders", orders)
        self.copy("shop.order_lines", lines)

    def load(self) -> None:
        row = self.row(
            "SELECT (SELECT coalesce(max(customer_id), 0) FROM shop.customers), "
            "(SELECT coalesce(max(order_id), 0) FROM shop.orders)"
        )
        assert row is not None
        self.counters = {"customer": row[0] + 1, "order": row[1] + 1}

    def actions(self) -> Iterable[tuple[float, Action]]:
        return (
            (30, self.place_order),
            (30, self.advance_order),
            (10, self.change_quantity),
            (5, self.drop_line),
            (8, self.change_customer),
            (5, self.register_customer),
            (5, self.correct_late),
            (4, self.cancel_order),
            (1.5, self.postpone),
            (0.8, self.mistype_credit_limit),
            (1, self.purge),
            (0.5, self.forget_customer),
        )

    # -- what it does

    def place_order(self) -> None:
        """An order with its lines, for a customer who may be new."""
        if self.maybe(0.15):
            self.register_customer()
        order, lines = self._order(self._living_customer(), self.now(), "placed")
        self.run(_ORDER_INSERT, *order)
        self.insert(_LINE_INSERT, lines)

    def advance_order(self) -> None:
        """Up to five orders take their next step."""
        for _ in range(self.random.randint(1, 5)):
            self.run(
                "UPDATE shop.orders SET updated_at = %s, status = CASE status WHEN 'placed' THEN 'paid' "
                "WHEN 'paid' THEN 'packed' WHEN 'packed' THEN 'shipped' WHEN 'shipped' THEN 'delivered' "
                "ELSE status END, note = coalesce(%s, note) WHERE order_id = %s AND status <> 'cancelled'",
                self.now(),
                self.random.choice(vocabulary.NOTES) if self.maybe(0.1) else None,
                self.earlier("order"),
            )

    def change_quantity(self) -> None:
        """Some lines of an order change, and with them its amount."""
        order_id = self.earlier("order")
        self.run(
            "UPDATE shop.order_lines SET quantity = quantity + %s, discount = %s "
            "WHERE order_id = %s AND line_number <= %s",
            self.random.randint(1, 3),
            self._discount(),
            order_id,
            self.random.randint(1, 3),
        )
        self._sum(order_id)

    def drop_line(self) -> None:
        """A line is taken out and those below it move up: their keys change."""
        order_id = self.earlier("order")
        numbers = [
            row[0]
            for row in self.rows(
                "SELECT line_number FROM shop.order_lines WHERE order_id = %s ORDER BY 1 FOR UPDATE", order_id
            )
        ]
        if len(numbers) < 2:
            return
        gone = self.random.choice(numbers)
        self.run("DELETE FROM shop.order_lines WHERE order_id = %s AND line_number = %s", order_id, gone)
        for number in numbers:
            if number > gone:
                self.run(
                    "UPDATE shop.order_lines SET line_number = %s WHERE order_id = %s AND line_number = %s",
                    number - 1,
                    order_id,
                    number,
                )
        self._sum(order_id)

    def mistype_credit_limit(self) -> None:
        """A clerk types a minus before a credit limit; whoever did so earlier is put right meanwhile.

        The database takes it, the product's contract does not.
        """
        self.run(
            "UPDATE shop.customers SET credit_limit = -credit_limit, updated_at = %s WHERE credit_limit < 0",
            self.now(),
        )
        self.run(
            "UPDATE shop.customers SET credit_limit = %s, updated_at = %s WHERE customer_id = %s",
            -100 * self.random.randint(1, 50),
            self.now(),
            self._living_customer(),
        )

    def change_customer(self) -> None:
        """A customer moves, or another credit limit is agreed on (or none)."""
        customer_id = self.earlier("customer")
        if self.maybe(0.5):
            self.run(
                "UPDATE shop.customers SET address = %s, marketing_consent = %s, updated_at = %s "
                "WHERE customer_id = %s",
                self._address(),
                self.random.choice((True, False, None)),
                self.now(),
                customer_id,
            )
        else:
            self.run(
                "UPDATE shop.customers SET credit_limit = %s, updated_at = %s WHERE customer_id = %s",
                self._credit_limit(),
                self.now(),
                customer_id,
            )

    def register_customer(self) -> None:
        """A new customer."""
        self.run(_CUSTOMER_INSERT, *self._customer(self.now()))

    def correct_late(self) -> None:
        """Weeks later someone finds that an order was placed earlier and cost something else."""
        self.run(
            "UPDATE shop.orders SET placed_at = placed_at - %s, amount = amount + %s, updated_at = placed_at "
            "WHERE order_id = %s",
            timedelta(hours=self.random.randint(1, 72), microseconds=self.random.randrange(1_000_000)),
            self.money(-20, 20),
            self.random.randint(1, self.counters["order"]),
        )

    def cancel_order(self) -> None:
        """An order that has not left the house is cancelled."""
        self.run(
            "UPDATE shop.orders SET status = 'cancelled', promised_on = NULL, tags = NULL, updated_at = %s "
            "WHERE order_id = %s AND status IN ('placed', 'paid')",
            self.now(),
            self.earlier("order"),
        )

    def postpone(self) -> None:
        """A strike: everything promised for the next days comes later."""
        newest = self.counters["order"]
        self.run(
            "UPDATE shop.orders SET promised_on = promised_on + 1, updated_at = %s "
            "WHERE order_id > %s AND status IN ('placed', 'paid', 'packed')",
            self.now(),
            newest - self.random.randint(50, 200),
        )

    def purge(self) -> None:
        """A few cancelled orders are deleted with their lines."""
        doomed = [
            row[0]
            for row in self.rows(
                "SELECT order_id FROM shop.orders WHERE status = 'cancelled' AND order_id < %s "
                "ORDER BY order_id LIMIT 10",
                self.counters["order"] - 100,
            )
        ]
        self.run("DELETE FROM shop.order_lines WHERE order_id = ANY(%s)", doomed)
        self.run("DELETE FROM shop.orders WHERE order_id = ANY(%s)", doomed)

    def forget_customer(self) -> None:
        """Someone asks to be forgotten: deleted, or made anonymous if there are orders."""
        customer_id = self.earlier("customer")
        gone = self.run(
            "DELETE FROM shop.customers AS c WHERE customer_id = %s "
            "AND NOT EXISTS (SELECT FROM shop.orders AS o WHERE o.customer_id = c.customer_id)",
            customer_id,
        )
        if not gone:
            self.run(
                "UPDATE shop.customers SET email = NULL, full_name = '', address = NULL, "
                "marketing_consent = false, updated_at = %s WHERE customer_id = %s",
                self.now(),
                customer_id,
            )

    # -- what it makes

    def _living_customer(self) -> int:
        row = self.row(
            "SELECT customer_id FROM shop.customers WHERE customer_id <= %s "
            "ORDER BY 1 DESC LIMIT 1 FOR SHARE",
            self.earlier("customer"),
        )
        if row is None:
            row = self.row("SELECT min(customer_id) FROM shop.customers")
        assert row is not None
        return int(row[0])

    def _sum(self, order_id: int) -> None:
        self.run(
            "UPDATE shop.orders AS o SET updated_at = %s, amount = coalesce((SELECT "
            "sum(quantity * unit_price) FROM shop.order_lines AS l WHERE l.order_id = o.order_id), 0) "
            "WHERE order_id = %s",
            self.now(),
            order_id,
        )

    def _customer(self, created_at: datetime) -> tuple[Any, ...]:
        number = self.next("customer")
        return (
            number,
            None if self.maybe(0.05) else f"customer{number}@example.com",
            vocabulary.full_name(self.random),
            self.random.choice(_SEGMENTS),
            self._credit_limit(),
            self._address(),
            self.random.choice((True, False, None)),
            created_at,
            created_at,
        )

    def _order(
        self, customer_id: int, placed_at: datetime, status: str
    ) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
        number = self.next("order")
        lines = [
            (
                number,
                line_number,
                vocabulary.sku(self.random),
                self.random.randint(1, 9),
                self.money(0.5, 400),
                self._discount(),
            )
            for line_number in range(1, self.random.randint(1, 6) + 1)
        ]
        amount = sum((quantity * price for _, _, _, quantity, price, _ in lines), Decimal(0))
        tags = self.random.sample(vocabulary.TAGS, self.random.randint(0, 3))
        order = (
            number,
            customer_id,
            status,
            self.random.choice(_CURRENCIES),
            amount,
            placed_at,
            (placed_at + timedelta(days=self.random.randint(1, 14))).date() if self.maybe(0.9) else None,
            tags if self.maybe(0.7) else None,
            self.random.choice(vocabulary.NOTES) if self.maybe(0.3) else None,
            placed_at,
        )
        return order, lines

    def _address(self) -> Jsonb | None:
        if self.maybe(0.05):
            return None
        address: dict[str, Any] = {
            "city": self.random.choice(vocabulary.CITIES),
            "street": f"Rue de l'Été {self.random.randint(1, 199)}",
            "zip": f"{self.random.randrange(100_000):05d}",
        }
        if self.maybe(0.3):
            address["position"] = {"lat": round(self.random.uniform(-60, 70), 5), "doors": [1, None, "b"]}
        return Jsonb(address)

    def _credit_limit(self) -> Decimal | None:
        return None if self.maybe(0.3) else self.money(100, 90_000)

    def _discount(self) -> float | None:
        return None if self.maybe(0.6) else self.random.choice((0.05, 0.1, 1 / 3, 0.15))


if __name__ == "__main__":
    sys.exit(main(Sales))

"""Distribution: warehouses hold stock, and shipments leave them for the customers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from mesh_assets.local.organisation import vocabulary
from mesh_assets.local.organisation.application import Action, Application, main

WAREHOUSE_COUNT = 24
SHIPMENT_COUNT = 3_000
"""Shipments that exist from the start: one for each of the first orders."""

_SKUS_PER_WAREHOUSE = 120
_SHIPMENT_INSERT = "INSERT INTO supply.shipments VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"


class Distribution(Application):
    """Owner of the supply chain. The order numbers it ships come one after the other, as from Sales.

    It starts fewer shipments than Sales takes orders, so at equal rates every number exists there.
    """

    name = "distribution"

    def seed(self) -> None:
        self.counters = {"order": 1, "sku": 1}
        self.copy("supply.warehouses", [self._warehouse(n) for n in range(1, WAREHOUSE_COUNT + 1)])
        stock = [
            self._stock(warehouse_id, f"SKU-{number:04d}")
            for warehouse_id in range(1, WAREHOUSE_COUNT + 1)
            for number in sorted(self.random.sample(range(400), _SKUS_PER_WAREHOUSE))
        ]
        self.copy("supply.stock", stock)
        self.copy("supply.shipments", [self._shipment(past=True) for _ in range(SHIPMENT_COUNT)])

    def load(self) -> None:
        row = self.row(
            "SELECT (SELECT coalesce(max(order_id), 0) FROM supply.shipments), "
            "(SELECT count(*) FROM supply.stock WHERE sku LIKE '%-R%')"
        )
        assert row is not None
        self.counters = {"order": row[0] + 1, "sku": row[1] + 1}

    def actions(self) -> Iterable[tuple[float, Action]]:
        return (
            (30, self.move_stock),
            (25, self.plan_shipment),
            (30, self.advance_shipments),
            (5, self.count_stock),
            (3, self.touch_warehouse),
            (2, self.rename_article),
            (2, self.change_assortment),
            (1.5, self.correct_delivery),
            (1, self.clear_lost),
            (0.5, self.rewrite_handbook),
        )

    # -- what it does

    def move_stock(self) -> None:
        """Goods come in, or move from one warehouse to another: several rows at once."""
        article, quantity = vocabulary.sku(self.random), self.random.randint(1, 40)
        source, target = self.random.sample(range(1, WAREHOUSE_COUNT + 1), 2)
        if self.maybe(0.5):
            taken = self.run(
                "UPDATE supply.stock SET on_hand = on_hand - %s WHERE warehouse_id = %s AND sku = %s "
                "AND on_hand - reserved >= %s",
                quantity,
                source,
                article,
                quantity,
            )
            if not taken:
                return
        self.run(
            "INSERT INTO supply.stock VALUES (%s, %s, %s, 0, NULL, NULL) "
            "ON CONFLICT (warehouse_id, sku) DO UPDATE SET on_hand = stock.on_hand + excluded.on_hand",
            target,
            article,
            quantity,
        )

    def plan_shipment(self) -> None:
        """The next order is planned, in one parcel or two, and its goods are reserved."""
        first = self._shipment(past=False)
        parcels = [first]
        if self.maybe(0.2):
            parcels.append((self._uuid(), *first[1:5], self._weight(), *first[6:]))
        self.insert(_SHIPMENT_INSERT, parcels)
        self.run(
            "UPDATE supply.stock SET reserved = reserved + 1 WHERE warehouse_id = %s "
            "AND sku = ANY(%s) AND on_hand > reserved",
            first[2],
            [vocabulary.sku(self.random) for _ in range(12)],
        )

    def advance_shipments(self) -> None:
        """Some open shipments take their next step; their events are kept in order."""
        moment, last = self.now(), self.earlier("order")
        picked = self.rows(
            "SELECT shipment_id, status::text FROM supply.shipments WHERE order_id BETWEEN %s AND %s "
            "AND status IN ('planned', 'picked', 'shipped') ORDER BY shipment_id FOR UPDATE",
            last - 5,
            last,
        )
        for shipment_id, status in picked:
            event = Jsonb([self._event(status, moment)])
            if status == "planned":
                self.run(
                    "UPDATE supply.shipments SET status = 'picked', label = %s, events = events || %s "
                    "WHERE shipment_id = %s",
                    self.random.randbytes(self.random.randint(200, 1_200)),
                    event,
                    shipment_id,
                )
            elif status == "picked":
                self.run(
                    "UPDATE supply.shipments SET status = 'shipped', carrier = %s, shipped_at = %s, "
                    "weight_kg = %s, events = events || %s WHERE shipment_id = %s",
                    self.random.choice(vocabulary.CARRIERS),
                    moment,
                    self._weight(),
                    event,
                    shipment_id,
                )
            else:
                lost = self.maybe(0.04)
                self.run(
                    "UPDATE supply.shipments SET status = %s, delivered_at = %s, label = NULL, "
                    "events = events || %s WHERE shipment_id = %s",
                    "lost" if lost else "delivered",
                    None if lost else moment,
                    event,
                    shipment_id,
                )

    def count_stock(self) -> None:
        """Somebody counted a shelf some days ago and enters it only now."""
        counted_at = self.before(5)
        self.run(
            "UPDATE supply.stock SET on_hand = greatest(reserved, on_hand + %s), counted_at = %s "
            "WHERE warehouse_id = %s AND sku LIKE %s",
            self.random.randint(-2, 2),
            counted_at,
            self._warehouse_id(),
            f"SKU-{self.random.randrange(40):03d}%",
        )

    def touch_warehouse(self) -> None:
        """A warehouse changes while its large handbook stays as it is."""
        self.run(
            "UPDATE supply.warehouses SET capacity_m3 = %s, opens_at = %s, active = %s, updated_at = %s "
            "WHERE warehouse_id = %s",
            self.random.choice((None, 1e4 / 3, 12_500.5, self.random.uniform(1e3, 1e5))),
            time_of_day(
                self.random.randint(4, 9), self.random.choice((0, 15, 30)), 0, self.random.randrange(10**6)
            ),
            self.maybe(0.9),
            self.now(),
            self._warehouse_id(),
        )

    def rename_article(self) -> None:
        """An article gets another number in one warehouse: its key changes."""
        self.run(
            "UPDATE supply.stock AS s SET sku = %s WHERE warehouse_id = %s AND sku = (SELECT sku "
            "FROM supply.stock WHERE warehouse_id = s.warehouse_id AND sku >= %s ORDER BY sku LIMIT 1)",
            f"{vocabulary.sku(self.random)}-R{self.next('sku')}",
            self._warehouse_id(),
            vocabulary.sku(self.random),
        )

    def change_assortment(self) -> None:
        """A warehouse gives up what it has none of, and takes in something else."""
        warehouse_id = self._warehouse_id()
        self.run(
            "DELETE FROM supply.stock WHERE warehouse_id = %s AND reserved = 0 AND on_hand < 3", warehouse_id
        )
        self.run(
            "INSERT INTO supply.stock VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            *self._stock(warehouse_id, vocabulary.sku(self.random)),
        )

    def correct_delivery(self) -> None:
        """The carrier's own report comes late: it was delivered earlier than we had it."""
        self.run(
            "UPDATE supply.shipments SET delivered_at = delivered_at - %s, weight_kg = %s "
            "WHERE order_id = %s AND status = 'delivered'",
            timedelta(minutes=self.random.randint(1, 600)),
            self._weight(),
            self.random.randint(1, self.counters["order"]),
        )

    def clear_lost(self) -> None:
        """Lost shipments are written off."""
        self.run(
            "DELETE FROM supply.shipments WHERE shipment_id IN (SELECT shipment_id FROM supply.shipments "
            "WHERE status = 'lost' AND order_id < %s ORDER BY order_id LIMIT 3)",
            self.counters["order"] - 50,
        )

    def rewrite_handbook(self) -> None:
        """A new edition of a warehouse's handbook."""
        self.run(
            "UPDATE supply.warehouses SET manual = %s, updated_at = %s WHERE warehouse_id = %s",
            None if self.maybe(0.1) else vocabulary.handbook(self.random),
            self.now(),
            self._warehouse_id(),
        )

    # -- what it makes

    def _warehouse_id(self) -> int:
        return self.random.randint(1, WAREHOUSE_COUNT)

    def _uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def _weight(self) -> Decimal:
        return Decimal(self.random.randint(50, 40_000)).scaleb(-3)

    def _event(self, status: str, moment: datetime) -> dict[str, Any]:
        return {"after": status, "at": moment.isoformat(), "dock": self.random.choice((None, 1, "Süd"))}

    def _warehouse(self, number: int) -> tuple[Any, ...]:
        place = self.random.randrange(len(vocabulary.CITIES))
        return (
            number,
            f"W{number:02d}",
            f"{vocabulary.CITIES[place]} {number}",
            vocabulary.COUNTRIES[place],
            None if number == 7 else self.random.uniform(1e3, 1e5),
            time_of_day(6, 30),
            True,
            None if number == 11 else vocabulary.handbook(self.random),
            self.before(300),
        )

    def _stock(self, warehouse_id: int, article: str) -> tuple[Any, ...]:
        return (
            warehouse_id,
            article,
            self.random.randint(0, 500),
            0,
            None if self.maybe(0.2) else self.random.randint(5, 50),
            self.before(30) if self.maybe(0.8) else None,
        )

    def _shipment(self, *, past: bool) -> tuple[Any, ...]:
        planned_at = self.before(90) if past else self.now()
        delivered = past and self.maybe(0.9)
        return (
            self._uuid(),
            self.next("order"),
            self._warehouse_id(),
            "delivered" if delivered else "planned",
            self.random.choice(vocabulary.CARRIERS) if delivered else None,
            self._weight() if delivered else None,
            planned_at + timedelta(hours=3) if delivered else None,
            planned_at + timedelta(hours=30, seconds=self.random.randrange(90_000)) if delivered else None,
            None if delivered else b"",
            Jsonb([self._event("ordered", planned_at)]),
        )


if __name__ == "__main__":
    sys.exit(main(Distribution))

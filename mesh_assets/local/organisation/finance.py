"""Finance: double entry bookkeeping; every booking is a set of transactions that adds up to nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from mesh_assets.local.organisation import vocabulary
from mesh_assets.local.organisation.application import Action, Application, main

ACCOUNT_COUNT = 1_500
BOOKING_COUNT = 3_000
"""Payments that exist from the start: one for each of the first orders."""

_REVENUE = 1
_FEES = 2
_ROUNDING = 3
_OWN = {_REVENUE: "revenue", _FEES: "fees", _ROUNDING: "suspense"}
_TRANSACTION_INSERT = "INSERT INTO ledger.transactions VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
_ACCOUNT_INSERT = "INSERT INTO ledger.accounts VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"


class Finance(Application):
    """Owner of accounts and transactions. The order numbers it books come one after the other.

    It books fewer payments than Sales takes orders, so at equal rates every number exists there.
    """

    name = "finance"

    def seed(self) -> None:
        self.counters = {"account": 1, "transaction": 1, "order": 1}
        accounts = [self._account(self.before(900)) for _ in range(ACCOUNT_COUNT)]
        balances = [Decimal(0)] * ACCOUNT_COUNT
        transactions = []
        for booked_at in sorted(self.before(90) for _ in range(BOOKING_COUNT)):
            payer, amount = self.random.randint(len(_OWN) + 1, ACCOUNT_COUNT), self.money(5, 2_000)
            entries = [(payer, -amount), (_REVENUE, amount)]
            transactions += self._entries(entries, booked_at, "payment", self.next("order"))
            for account_id, change in entries:
                balances[account_id - 1] += change
        self.copy(
            "ledger.accounts",
            [(*row[:5], balance, *row[6:]) for row, balance in zip(accounts, balances, strict=True)],
        )
        self.copy("ledger.transactions", transactions)

    def load(self) -> None:
        row = self.row(
            "SELECT (SELECT coalesce(max(account_id), 0) FROM ledger.accounts), "
            "(SELECT coalesce(max(transaction_id), 0) FROM ledger.transactions), "
            "(SELECT coalesce(max(order_id), 0) FROM ledger.transactions)"
        )
        assert row is not None
        self.counters = {"account": row[0] + 1, "transaction": row[1] + 1, "order": row[2] + 1}

    def actions(self) -> Iterable[tuple[float, Action]]:
        return (
            (22, self.book_payment),
            (30, self.transfer),
            (10, self.settle),
            (8, self.reverse),
            (8, self.correct_value_date),
            (8, self.open_account),
            (5, self.rename_holder),
            (3, self.close_account),
            (2, self.charge_fees),
            (2, self.refer),
            (1, self.delete_unused),
        )

    # -- what it does

    def book_payment(self) -> None:
        """A customer pays for the next order."""
        amount = self.money(5, 2_000)
        self._book([(self._customer(), -amount), (_REVENUE, amount)], "payment", self.next("order"))

    def transfer(self) -> None:
        """Money moves between two customers' accounts."""
        amount = self.money(0.01, 50_000)
        source, target = self._customer(), self._customer()
        if source != target:
            self._book([(source, -amount), (target, amount)], "transfer", None)

    def settle(self) -> None:
        """One payment is split over several accounts; what rounding leaves goes to suspense."""
        payees = sorted({self._customer() for _ in range(self.random.randint(2, 6))})
        total = self.money(10, 900)
        share = (total / len(payees)).quantize(Decimal("0.01"))
        entries = [(_REVENUE, -total), *((payee, share) for payee in payees)]
        entries.append((_ROUNDING, total - share * len(payees)))
        self._book([entry for entry in entries if entry[1]], "settlement", None)

    def reverse(self) -> None:
        """A booking was wrong: the opposite is booked, and the wrong one points to it."""
        row = self.row(
            "SELECT booked_at, reference FROM ledger.transactions WHERE transaction_id = %s "
            "AND reversed_by IS NULL AND kind <> 'reversal'",
            self.earlier("transaction"),
        )
        if row is None:
            return
        wrong = self.rows(
            "SELECT transaction_id, account_id, amount, order_id FROM ledger.transactions "
            "WHERE booked_at = %s AND reference = %s AND reversed_by IS NULL "
            "ORDER BY transaction_id FOR UPDATE",
            *row,
        )
        first = self.counters["transaction"]
        self._book(
            [(account_id, -amount) for _, account_id, amount, _ in wrong],
            "reversal",
            wrong[0][3] if wrong else None,
        )
        self.insert(
            "UPDATE ledger.transactions SET reversed_by = %s WHERE transaction_id = %s",
            [(first + index, wrong_row[0]) for index, wrong_row in enumerate(wrong)],
        )

    def correct_value_date(self) -> None:
        """The bank's statement says that the money was there earlier."""
        last = self.earlier("transaction")
        self.run(
            "UPDATE ledger.transactions SET value_date = value_date - %s "
            "WHERE transaction_id BETWEEN %s AND %s",
            self.random.randint(1, 9),
            last - self.random.randint(0, 8),
            last,
        )

    def open_account(self) -> None:
        """A new account."""
        self.run(_ACCOUNT_INSERT, *self._account(self.now()))

    def rename_holder(self) -> None:
        """A holder's name or bank changes."""
        number = self._customer()
        self.run(
            "UPDATE ledger.accounts SET holder = %s, iban = %s, updated_at = %s WHERE account_id = %s",
            vocabulary.full_name(self.random),
            self._iban(number),
            self.now(),
            number,
        )

    def close_account(self) -> None:
        """An account is emptied and closed."""
        number = self._customer()
        row = self.row("SELECT balance FROM ledger.accounts WHERE account_id = %s FOR UPDATE", number)
        if row is not None and row[0]:
            self._book([(number, -row[0]), (_ROUNDING, row[0])], "closing", None)
        self.run(
            "UPDATE ledger.accounts SET closed_on = %s, iban = NULL, updated_at = %s "
            "WHERE account_id = %s AND closed_on IS NULL",
            self._today(),
            self.now(),
            number,
        )

    def charge_fees(self) -> None:
        """The monthly fee of a block of accounts: hundreds of rows in one transaction."""
        start = self._customer()
        numbers = [
            row[0]
            for row in self.rows(
                "SELECT account_id FROM ledger.accounts WHERE account_id BETWEEN %s AND %s "
                "AND closed_on IS NULL AND kind = 'customer' ORDER BY 1",
                start,
                start + self.random.randint(20, 150),
            )
        ]
        fee = self.money(0.5, 4)
        if numbers:
            self._book([*((number, -fee) for number in numbers), (_FEES, fee * len(numbers))], "fee", None)

    def refer(self) -> None:
        """Someone writes a longer reference to a transaction, or takes it out."""
        self.run(
            "UPDATE ledger.transactions SET reference = %s WHERE transaction_id = %s AND kind = 'transfer' "
            "AND reversed_by IS NOT NULL",
            self.random.choice((None, *vocabulary.NOTES)),
            self.earlier("transaction"),
        )

    def delete_unused(self) -> None:
        """Accounts that nobody ever used are deleted."""
        number = self.earlier("account")
        self.run(
            "DELETE FROM ledger.accounts AS a WHERE account_id BETWEEN %s AND %s AND kind = 'customer' "
            "AND NOT EXISTS (SELECT FROM ledger.transactions AS t WHERE t.account_id = a.account_id)",
            number - 5,
            number,
        )

    # -- what it makes

    def _book(self, entries: list[tuple[int, Decimal]], kind: str, order_id: int | None) -> None:
        """Enter a booking; entries of accounts that are gone go to suspense, so that it still adds up."""
        known = {
            row[0]
            for row in self.rows(
                "SELECT account_id FROM ledger.accounts WHERE account_id = ANY(%s) ORDER BY 1 FOR UPDATE",
                [account_id for account_id, _ in entries],
            )
        }
        safe = [(number if number in known else _ROUNDING, amount) for number, amount in entries]
        self.insert(_TRANSACTION_INSERT, self._entries(safe, self.now(), kind, order_id))
        self.insert(
            "UPDATE ledger.accounts SET balance = balance + %s, updated_at = %s WHERE account_id = %s",
            [(amount, self.now(), number) for number, amount in safe],
        )

    def _entries(
        self, entries: list[tuple[int, Decimal]], booked_at: datetime, kind: str, order_id: int | None
    ) -> list[tuple[Any, ...]]:
        reference = f"{kind}-{self.counters['transaction']:08d}"
        return [
            (
                self.next("transaction"),
                account_id,
                order_id,
                booked_at,
                booked_at.date() + timedelta(days=self.random.randint(0, 2)),
                amount,
                kind,
                reference,
                None,
            )
            for account_id, amount in entries
        ]

    def _account(self, opened_at: datetime) -> tuple[Any, ...]:
        number = self.next("account")
        own = _OWN.get(number)
        return (
            number,
            self._iban(number),
            "Sample Organisation" if own else vocabulary.full_name(self.random),
            own or "customer",
            "EUR",
            Decimal(0),
            opened_at.date(),
            None,
            opened_at,
        )

    def _customer(self) -> int:
        return max(self.earlier("account"), len(_OWN) + 1)

    def _iban(self, number: int) -> str | None:
        return None if self.maybe(0.1) else f"DE{self.random.randrange(100):02d}{number:018d}"

    def _today(self) -> date:
        return self.now().date()


if __name__ == "__main__":
    sys.exit(main(Finance))

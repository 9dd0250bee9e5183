"""Readers beside a shift that appends, folds, compacts and archives never fail and never see half."""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psycopg
import pytest

from mesh_assets.ingest.shift import Shift
from mesh_assets.lake import table
from mesh_assets.lake.current import FoldPolicy
from mesh_assets.lake.upkeep import Upkeep
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.report import BatchReport, Budget, FoldReport, Silent
from tests.crash import workload
from tests.crash.reader import ENOUGH_VERSIONS, GRACE_SECONDS

CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: shop.everything
name: everything
version: 1.0.0
status: active
domain: shop
team:
  name: shop
schema:
  - name: line
    physicalName: shop.line
    physicalType: table
    logicalType: object
    properties:
      - {name: item_id, logicalType: integer, physicalType: integer, primaryKey: true, primaryKeyPosition: 1}
      - {name: number, logicalType: integer, physicalType: integer, primaryKey: true, primaryKeyPosition: 2}
      - {name: quantity, logicalType: integer, physicalType: integer}
      - {name: remark, logicalType: string, physicalType: text}
"""
DOMAIN = """\
type: mesh_assets.orchestration.Domain
attributes:
  description: A shop.
  owner: team:shop
  sources:
    app: {kind: postgres}
"""
PRODUCT = """\
type: mesh_assets.orchestration.DataProduct
attributes:
  source: app
"""
_SECONDS = 1.5 * GRACE_SECONDS
_TRANSACTIONS_PER_SECOND = 100.0

EAGER = Budget(
    max_seconds=_SECONDS,
    idle_seconds=30,
    batch_seconds=0.02,
    snapshot_rows=500,
    fold=FoldPolicy(share=0.0, min_count=1, min_age_seconds=0.0),
    # A reader may hold files for some seconds; nothing else is spared.
    upkeep=Upkeep(
        archive_seconds=0.0,
        vacuum_seconds=GRACE_SECONDS,
        run_length=2,
        commit_count=1,
        look_seconds=0,
        tend_seconds=0,
    ),
)


def products(folder: Path) -> Path:
    """A product of one table."""
    product = folder / "shop" / "everything"
    product.mkdir(parents=True)
    (folder / "shop" / "defs.yaml").write_text(DOMAIN)
    (product / "defs.yaml").write_text(PRODUCT)
    (product / "contract.yaml").write_text(CONTRACT)
    return folder


def transact(connection: psycopg.Connection[tuple[object, ...]], choose: random.Random) -> None:
    """One transaction that keeps the sum of quantities at zero and the number of rows even."""
    key, other, amount = choose.randrange(300), choose.randrange(300), choose.randrange(1, 100)
    with connection.transaction():
        lot = choose.random()
        if lot < 0.5:
            connection.execute(
                "update shop.line set quantity = quantity + %s where item_id = %s and number = 0",
                (amount, key),
            )
            connection.execute(
                "update shop.line set quantity = quantity - %s where item_id = %s and number = 1",
                (amount, key),
            )
        elif lot < 0.8:
            connection.execute(
                "insert into shop.line values (%s, 0, %s, 'a'), (%s, 1, %s, 'b') on conflict do nothing",
                (key, amount, key, -amount),
            )
        elif lot < 0.9:
            connection.execute("delete from shop.line where item_id = %s", (key,))
        elif lot < 0.99:
            connection.execute(
                "update shop.line set item_id = %s where item_id = %s and not exists "
                "(select from shop.line where item_id = %s)",
                (other, key, other),
            )
        else:
            connection.execute("truncate shop.line")


@contextmanager
def writing(url: str) -> Iterator[None]:
    """The application, in a thread."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        choose = random.Random(4)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                while not stopping.wait(1 / _TRANSACTIONS_PER_SECOND):
                    transact(connection, choose)
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    assert failures == []


class Busy(Silent):
    """Has the shift go on until there was enough to see, and the reader has seen enough of it."""

    def __init__(self, said: IO[str], log: Path) -> None:
        self._said = said
        self._archive = log / "_archive"
        self.batch_count = 0
        self.fold_count = 0
        self.word = ""

    def batch(self, report: BatchReport) -> None:
        self.batch_count += 1

    def fold(self, report: FoldReport) -> None:
        self.fold_count += 1

    def archived(self) -> bool:
        return any(self._archive.glob("*.tar"))

    def relieved(self) -> bool:
        return self.batch_count > 10 and self.fold_count > 3 and self.archived() and self._read_enough()

    def _read_enough(self) -> bool:
        """Whether the reader has said so, or has come to its end."""
        if not self.word and select.select([self._said], [], [], 0)[0]:
            self.word = self._said.readline() or "nothing"
        return bool(self.word)


@pytest.mark.slow
def test_readers_never_fail_and_never_see_half_a_transaction(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "CHECKPOINT_INTERVAL", 10)
    monkeypatch.setenv("MESH_SOURCE_SHOP_APP_URL", database_url)
    workload.create(database_url)
    settings = Settings(products=products(tmp_path / "products"), lake=str(tmp_path / "lake"))
    plan = Mesh(settings).plan("shop", "app")
    with psycopg.connect(database_url, autocommit=True) as connection:
        choose = random.Random(3)
        for _ in range(300):
            transact(connection, choose)
    Shift(plan, budget=Budget(idle_seconds=0.2)).run()
    reader = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.reader", str(settings.products), settings.lake],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    try:
        first = reader.stdout.readline()
        assert first == "reading\n", first
        busy = Busy(reader.stdout, Path(plan.targets[0].changes_uri))
        with writing(database_url):
            result = Shift(plan, budget=EAGER, observer=busy).run()
        reader.stdin.close()
        report = json.loads(reader.stdout.read() or busy.word)
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()
    assert report["problems"] == [], "\n".join(report["problems"])
    assert result.reason == "budget"
    assert result.batch_count > 10
    assert busy.fold_count > 3
    assert len(set(report["versions"])) >= ENOUGH_VERSIONS
    assert report["pinned_count"] > 0
    assert busy.archived(), "no commit was archived"

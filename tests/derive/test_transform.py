"""Transforms that are wrong: each is named with file and line, and keeps nobody else waiting."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import polars as pl
import psutil
import pyarrow as pa
import pytest

from mesh_assets.derive import DerivePlan, child
from mesh_assets.derive.transform import Transformer
from mesh_assets.errors import TransformError
from mesh_assets.lake.shape import Shape, polars_schema
from mesh_assets.names import ProductName
from tests.derive.world import CUSTOMERS, ORDERS, SPENDING, World

WRONG = ProductName("shop", "wrong")
TABLES = {"wrong": (pa.schema([("customer_id", pa.int64()), ("region", pa.string())]), ("customer_id",))}
INPUTS = """\
    customers:
      product: shop.customers
      key: {customer_id: customer_id}
"""
HEAD = "import polars as pl\n\n\ndef transform(inputs):\n"

CASES = {
    "raises": (
        HEAD + "    rows = inputs['customers']\n    raise ValueError('no more')\n",
        ["transform.py:6: shop.wrong: ValueError: no more"],
    ),
    "no such input": (
        HEAD + "    return inputs['customer']\n",
        ["transform.py:5: shop.wrong: KeyError: 'customer'", "as in defs.yaml"],
    ),
    "no such column": (
        HEAD + "    return inputs['customers'].select('customer_id', pl.col('area').alias('region'))\n",
        ["transform.py:4: shop.wrong: ColumnNotFoundError", "area"],
    ),
    "fails while computed": (
        HEAD
        + "    number = pl.col('region').cast(pl.Int64)\n"
        + "    return inputs['customers'].with_columns(region=number.cast(pl.String))\n",
        ["transform.py:4: shop.wrong: InvalidOperationError"],
    ),
    "missing and extra columns": (
        HEAD + "    return inputs['customers'].select('customer_id', area='region')\n",
        ["table 'wrong' lacks 'region' and has 'area', which the contract has not", "customer_id, region"],
    ),
    "another type": (
        HEAD + "    return inputs['customers'].with_columns(pl.col('customer_id').cast(pl.Float64))\n",
        ["column 'customer_id' of 'wrong' is Float64, the contract says Int64", "write .cast(pl.Int64)"],
    ),
    "duplicate keys": (
        HEAD + "    return inputs['customers'].with_columns(customer_id=pl.lit(7, pl.Int64))\n",
        ["table 'wrong' has keys more than once: customer_id=7 (20 rows)", "one row per customer_id"],
    ),
    "null keys": (
        HEAD + "    return inputs['customers'].with_columns(customer_id=pl.lit(None, pl.Int64)).head(1)\n",
        ["table 'wrong' has null in its key: customer_id=None"],
    ),
    "nothing": (
        HEAD + "    inputs['customers']\n",
        ["it returns NoneType, not a LazyFrame", "did you forget to return?"],
    ),
    "other tables": (
        HEAD + "    return {'right': inputs['customers']}\n",
        ["it returns the tables right; the contract has wrong"],
    ),
    "no function": (
        "import polars as pl\n\ntransform = 3\n",
        ["transform.py:1: shop.wrong: AttributeError"],
    ),
    "leaves": (
        HEAD + "    raise SystemExit(3)\n",
        ["SystemExit: a transform must not end the program"],
    ),
    "dies": (
        "import os\n" + HEAD + "    os.abort()\n",
        ["its process ended by signal 6"],
    ),
    "dies and leaves a process behind": (
        "import os\n" + HEAD + "    os.system('sleep 30 &')\n    os.abort()\n",
        ["its process ended by signal 6"],
    ),
    "closes what is not its own": (
        "import os, time\n" + HEAD + "    os.closerange(3, 1000)\n    time.sleep(1000)\n",
        ["it closed the pipe through which its process answers", "close only files that it has opened"],
    ),
    "never ends": (
        HEAD + "    while True:\n        pass\n",
        ["did not finish within 1 s and was ended", "max_seconds in defs.yaml"],
    ),
    "eats memory": (
        HEAD + "    hoard = []\n    while True:\n        hoard.append(bytearray(1 << 24))\n",
        ["it took", "more than the 300 MiB it may have, and was ended", "transform.py:7"],
    ),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One right and one wrong derived product."""
    world = World(tmp_path)
    customers, orders = world.writer(CUSTOMERS), world.writer(ORDERS)
    customers.put("customers", *((number, "north") for number in range(20)))
    orders.put("orders", *((number, number % 10, "EUR") for number in range(40)))
    orders.put("lines", *((number, line, Decimal("1.50")) for number in range(40) for line in range(2)))
    customers.cut()
    orders.cut()
    world.derive()
    return world


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named_and_the_others_go_on(world: World, case: str) -> None:
    transform, said = CASES[case]
    limits = "{max_seconds: 1, max_memory_mb: 2048}" if case == "never ends" else "{max_memory_mb: 300}"
    world.derive(WRONG, TABLES, INPUTS, transform, limits=limits)
    result = world.shift()
    assert set(result.refused) == {"shop.wrong"}
    for part in said:
        assert part in result.refused["shop.wrong"]
    assert world.rows(SPENDING, "spending").height == 20
    plan = next(one for one in world.plans() if one.name == WRONG)
    refusal = plan.refusal()
    assert refusal is not None
    assert refusal["error"] == result.refused["shop.wrong"]
    # With the same code and the same inputs there is nothing to be tried again.
    assert plan.pending() is None


def test_it_resumes_once_it_is_right(world: World) -> None:
    world.derive(WRONG, TABLES, INPUTS, CASES["raises"][0])
    assert world.shift().refused
    world.derive(WRONG, TABLES, INPUTS, HEAD + "    return inputs['customers']\n")
    plan = next(one for one in world.plans() if one.name == WRONG)
    assert plan.pending() == "it was never made"
    assert world.shift().refused == {}
    assert world.rows(WRONG, "wrong").height == 20
    assert plan.refusal() is None


def test_a_process_that_reads_no_more_keeps_nobody_waiting(world: World) -> None:
    def planned(limits: str) -> DerivePlan:
        text = HEAD + "    return inputs['customers']\n"
        world.derive(WRONG, TABLES, INPUTS, text, limits=limits)
        return next(one for one in world.plans() if one.name == WRONG)

    plan, hurried = planned(""), planned("{max_seconds: 2}")
    schema, key = TABLES["wrong"]
    shapes = {"wrong": Shape(polars_schema(schema), key)}
    inputs = {"customers": pl.LazyFrame({"customer_id": [1], "region": ["north"]})}
    # More than a pipe holds.
    region = pl.DataFrame({"customer_id": range(1_000_000)})
    with Transformer(plan.home) as transformer:
        with transformer.run(plan, shapes, inputs) as made:
            assert made.tables["wrong"].collect().height == 1
        (waiting,) = (one for one in psutil.Process().children() if child.__file__ in one.cmdline())
        waiting.suspend()
        with (
            pytest.raises(TransformError, match="did not finish within 2 s and was ended"),
            transformer.run(hurried, shapes, inputs, region),
        ):
            pass
        assert not waiting.is_running()
        with transformer.run(plan, shapes, inputs, region) as made:
            assert made.tables["wrong"].collect().height == 1

"""What a step says may quote values: of restricted columns nobody is told but the owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh_assets.lake.table import Table
from tests.derive.test_transform import HEAD, INPUTS, TABLES, WRONG
from tests.derive.world import CUSTOMERS, KEYS, SCHEMAS, World, contract_text

CAST = HEAD + (
    "    number = pl.col('region').cast(pl.Int64)\n"
    "    return inputs['customers'].with_columns(region=number.cast(pl.String))\n"
)
RAISED = HEAD + (
    "    first = inputs['customers'].collect().row(0)\n    raise ValueError(f'what is {first[1]}?')\n"
)
UNREAD = HEAD + (
    "    number = pl.col('customer_id').cast(pl.String) + pl.lit('secret-ly')\n"
    "    rows = inputs['customers'].select('customer_id')\n"
    "    return rows.with_columns(region=number.cast(pl.Int64).cast(pl.String))\n"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Customers whose region is restricted."""
    world = World(tmp_path)
    tables = {"customers": (SCHEMAS[CUSTOMERS, "customers"], KEYS["customers"])}
    contract = contract_text(
        CUSTOMERS, tables, captured=True, quality={"region": "classification: restricted"}
    )
    (world.products / "shop" / "customers" / "contract.yaml").write_text(contract)
    customers = world.writer(CUSTOMERS)
    customers.put("customers", *((number, f"secret-{number}") for number in range(20)))
    customers.cut()
    return world


def known(world: World) -> str:
    """All that is told of the product: what it is refused for, its messages, its lineage."""
    plan = next(one for one in world.plans() if one.name == WRONG)
    events = Table.open(world.mesh.layout.lineage())
    rows = events.read(events.files()).to_pylist()
    return json.dumps([plan.refusal(), world.observer.messages, rows], default=str)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (CAST, 'transform.py:4: shop.wrong: InvalidOperationError in col("region").strict_cast(Int64)'),
        (RAISED, "transform.py:6: shop.wrong: ValueError"),
    ],
)
def test_values_of_restricted_columns_are_not_told(world: World, transform: str, said: str) -> None:
    world.derive(WRONG, TABLES, INPUTS, transform)
    refused = world.shift().refused["shop.wrong"]
    assert said in refused
    assert "which only" in refused
    assert "errorMessage" in known(world)
    assert "secret" not in known(world)
    file = world.mesh.settings.home / "derive" / "errors" / "shop.wrong.txt"
    assert "secret-" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    world.derive(WRONG, TABLES, INPUTS, HEAD + "    return inputs['customers']\n")
    assert world.shift().refused == {}
    assert not file.exists()


def test_one_that_does_not_read_them_tells_all(world: World) -> None:
    world.derive(WRONG, TABLES, INPUTS, UNREAD)
    assert "secret-ly" in world.shift().refused["shop.wrong"]


# Of the first input the key is a number, of the second a text, whatever its contract says of it.
TWO_INPUTS = (
    INPUTS
    + """\
    regions:
      product: shop.customers
      key: {customer_id: region}
"""
)
NOTHING = HEAD + "    return inputs['customers'].filter(pl.lit(False))\n"


def test_errors_outside_of_the_transform_do_not_tell_them_either(world: World) -> None:
    contract = world.products / "shop" / "customers" / "contract.yaml"
    text, number = (
        "logicalType: string\n        physicalType: text",
        "logicalType: integer\n        physicalType: bigint",
    )
    contract.write_text(contract.read_text().replace(text, number))
    world.derive(WRONG, TABLES, TWO_INPUTS, NOTHING)
    assert world.shift().refused == {}
    customers = world.writer(CUSTOMERS)
    customers.put("customers", (20, "secret-20"))
    customers.cut()
    refused = world.shift().refused["shop.wrong"]
    assert "InvalidOperationError" in refused
    assert "at mesh_assets/derive/affected.py:" in refused
    assert "which only" in refused
    assert "errorMessage" in known(world)
    assert "secret-" not in known(world)
    file = world.mesh.settings.home / "derive" / "errors" / "shop.wrong.txt"
    assert "secret-20" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            "rows.with_columns(pl.lit(1).alias(rows.collect()['region'][0]))",
            "table 'wrong' has 1 that the contract has not",
        ),
        (
            "{rows.collect()['region'][0]: rows, 'wrong': rows}",
            "it returns 2 tables of other names; the contract has wrong",
        ),
        (
            "rows.with_columns(customer_id=pl.col('region').cast(pl.Enum(rows.collect()['region'])))",
            "column 'customer_id' of 'wrong' is Enum, the contract says Int64",
        ),
    ],
)
def test_names_that_are_made_of_values_are_not_told(world: World, result: str, said: str) -> None:
    world.derive(WRONG, TABLES, INPUTS, HEAD + f"    rows = inputs['customers']\n    return {result}\n")
    assert said in world.shift().refused["shop.wrong"]
    assert "secret" not in known(world)


def test_names_in_the_source_are_told(world: World) -> None:
    text = HEAD + "    return inputs['customers'].with_columns(rank=1)\n"
    world.derive(WRONG, TABLES, INPUTS, text)
    assert "has 'rank', which the contract has not" in world.shift().refused["shop.wrong"]


PRINTING = (
    HEAD
    + """\
    import logging, os, warnings
    rows = inputs["customers"].collect().sort("customer_id")
    print(rows["region"][0])
    logging.warning(rows["region"][1])
    warnings.warn(rows["region"][2])
    os.system("echo " + rows["region"][3])
    return rows
"""
)


def test_what_a_transform_prints_is_not_told(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.derive(WRONG, TABLES, INPUTS, PRINTING)
    assert world.shift().refused == {}
    (told,) = (text for text in world.observer.messages if "printed" in text)
    assert "shop.wrong: its transform printed 5 lines (" in told
    assert "which only" in told
    assert "secret" not in known(world)
    out, err = capfd.readouterr()
    assert "secret" not in out + err
    file = world.mesh.settings.home / "derive" / "prints" / "shop.wrong.txt"
    assert all(f"secret-{number}" in file.read_text() for number in range(4))
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_what_one_that_is_ended_had_printed_is_kept(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    # It is ended for its memory, which it takes once it has printed: no clock decides which is first.
    hoard = "    hoard = []\n    while True:\n        hoard.append(bytearray(1 << 24))\n"
    text = PRINTING.replace("    return rows\n", hoard)
    world.derive(WRONG, TABLES, INPUTS, text, limits="{max_memory_mb: 300}")
    refused = world.shift().refused["shop.wrong"]
    assert "of memory, more than the 300 MiB it may have, and was ended" in refused
    assert "secret" not in known(world) + "".join(capfd.readouterr())
    file = world.mesh.settings.home / "derive" / "prints" / "shop.wrong.txt"
    assert "secret-3" in file.read_text()


def test_without_restricted_columns_it_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    customers = world.writer(CUSTOMERS)
    customers.put("customers", *((number, f"open-{number}") for number in range(20)))
    customers.cut()
    world.derive(WRONG, TABLES, INPUTS, PRINTING)
    assert world.shift().refused == {}
    assert world.observer.messages == [one for one in world.observer.messages if "printed" not in one]
    err = capfd.readouterr().err
    assert all(f"open-{number}" in err for number in range(4))

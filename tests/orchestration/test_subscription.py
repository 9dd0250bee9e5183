"""When derived products need a shift, decided from their inputs' versions and what shifts have seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh_assets.contract.discovery import Discovery, Product, discover
from mesh_assets.names import ProductName
from mesh_assets.orchestration.subscription import (
    BEHIND_SECONDS,
    LONGEST_BEHIND_SECONDS,
    RETRY_SECONDS,
    Past,
    code_text,
    due,
    input_products,
    left_behind,
    root_sources,
    seen_heads,
    seen_text,
)
from tests.orchestration.conftest import PROJECT

NOW = 1_000_000.0


def sample() -> tuple[Discovery, list[Product]]:
    found = discover(PROJECT / "products")
    return found, [found.products[ProductName("sales", "customer_360")]]


def heads(products: list[Product], version: int) -> dict[ProductName, int]:
    return {one.product: version for product in products for one in product.definition.inputs}


def past(products: list[Product], version: int, failed_at: float | None = None) -> Past:
    return Past(seen_text(heads(products, version), code_text(products)), failed_at)


def test_inputs_and_sources_cross_domains() -> None:
    found, products = sample()
    names = [str(one.name) for one in input_products(products, found)]
    assert names == ["distribution.shipments", "finance.transactions", "sales.customers", "sales.orders"]
    assert root_sources(products, found) == ["distribution.app", "finance.app", "sales.app"]


def test_nothing_is_derived_before_every_input_has_a_version() -> None:
    _, products = sample()
    some = heads(products, 1) | {ProductName("sales", "orders"): 0}
    assert due(products, some, Past(), [], NOW) == (False, "what they are made of has no version yet")
    assert due(products, heads(products, 1), Past(), [], NOW)[0]


def test_a_version_that_no_shift_has_seen_needs_one() -> None:
    _, products = sample()
    assert due(products, heads(products, 7), past(products, 7), [], NOW) == (False, "nothing new")
    newer = heads(products, 7) | {ProductName("finance", "transactions"): 8}
    assert due(products, newer, past(products, 7), [], NOW) == (True, "finance.transactions has version 8")


def test_a_lake_that_began_anew_needs_one() -> None:
    _, products = sample()
    assert due(products, heads(products, 2), past(products, 7), [], NOW)[0]


def test_changes_on_their_way_need_one() -> None:
    _, products = sample()
    assert due(products, heads(products, 7), past(products, 7), ["sales.app"], NOW) == (
        True,
        "changes of sales.app are being captured",
    )


def test_a_product_whose_folder_was_removed_is_other_code(products: Path) -> None:
    own = [discover(products).products[ProductName("sales", "customer_360")]]
    before = code_text(own)
    shutil.rmtree(own[0].folder)
    assert code_text(own) not in ("", before)


def test_other_code_needs_one(products: Path) -> None:
    found = discover(products)
    made = [found.products[ProductName("sales", "customer_360")]]
    before = past(made, 7)
    transform = products / "sales" / "customer_360" / "transform.py"
    transform.write_text(transform.read_text() + "\n# another\n")
    changed = [discover(products).products[ProductName("sales", "customer_360")]]
    assert due(changed, heads(changed, 7), before, [], NOW)[0]


def test_after_a_failure_the_next_one_waits() -> None:
    _, products = sample()
    failed = past(products, 7, failed_at=NOW - 10)
    wanted, why = due(products, heads(products, 8), failed, [], NOW)
    assert not wanted
    assert why.startswith("the last shift failed; the next one starts in 20 s")
    assert due(products, heads(products, 8), failed, [], NOW + RETRY_SECONDS)[0]


@pytest.mark.parametrize(
    ("attempts", "pause"), [(1, BEHIND_SECONDS), (2, 2 * BEHIND_SECONDS), (8, LONGEST_BEHIND_SECONDS)]
)
def test_what_was_left_behind_is_tried_again_ever_later(attempts: int, pause: float) -> None:
    _, products = sample()
    name = products[0].name
    seen = seen_text(heads(products, 7), code_text(products), [name])
    left = Past(seen, ended_at=NOW, attempts=attempts)
    assert due(products, heads(products, 7), left, [], NOW + pause - 10) == (
        False,
        f"{name} was left behind; tried again in 10 s",
    )
    assert due(products, heads(products, 7), left, [], NOW + pause) == (True, f"{name} was left behind")
    # Another version is a reason at once.
    assert due(products, heads(products, 8), left, [], NOW)[0]


def test_a_strange_memory_is_forgotten() -> None:
    for text in ("", "{", "[]", '{"code": "x", "heads": {"a": "b"}}', '{"code": "x", "heads": []}'):
        assert seen_heads(text, "x") == {}
        assert left_behind(text) == []

"""The transforms of the sample organisation compute in parts; one that does not is found out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from mesh_assets.derive.plan import DerivePlan, derive_plan
from mesh_assets.derive.proof import disprove
from mesh_assets.derive.transform import Transformer
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.readers import input_tables
from tests.derive.world import World

SAMPLES = [str(product.name) for product in Mesh().discovery.derived()]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transformer]:
    """One for all."""
    with Transformer(tmp_path_factory.mktemp("home")) as transformer:
        yield transformer


def contracts(mesh: Mesh, plan: DerivePlan) -> dict[str, object]:
    return dict(input_tables(mesh.discovery, plan.product))


def test_there_are_samples() -> None:
    assert {"sales.customer_360", "finance.revenue", "distribution.late_shipments"} <= set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_compute_in_parts(transformer: Transformer, name: str) -> None:
    mesh = Mesh()
    plan = derive_plan(mesh.settings, mesh.discovery, ProductName.parse(name))
    assert plan.unit
    for seed in range(12):
        assert disprove(plan, contracts(mesh, plan), transformer, seed=seed) is None


def test_a_share_of_everything_is_found_out(transformer: Transformer, tmp_path: Path) -> None:
    name = ProductName("shop", "shares")
    world = World(tmp_path)
    world.derive(
        name,
        {"shares": (pa.schema([("customer_id", pa.int64()), ("region", pa.string())]), ("customer_id",))},
        "    customers: {product: shop.customers, key: {customer_id: customer_id}}\n",
        "import polars as pl\n\ndef transform(inputs):\n"
        "    most = pl.col('region').drop_nulls().max()\n"
        "    return inputs['customers'].with_columns(region=most)\n",
    )
    plan = world.plans()[0]
    found = [disprove(plan, contracts(world.mesh, plan), transformer, seed=seed) for seed in range(10)]
    assert any(one is not None and one.table == "shares" for one in found)

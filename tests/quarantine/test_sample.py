"""The sample organisation: honest data passes its contracts, and a clerk's slip shows in quarantine."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg

from mesh_assets.checks import log as checks
from mesh_assets.ingest.shift import Shift
from mesh_assets.local.organisation.application import schema
from mesh_assets.local.organisation.sales import Sales
from mesh_assets.names import ProductName
from mesh_assets.product import Mesh
from mesh_assets.quarantine import quarantine
from mesh_assets.settings import Settings
from mesh_assets.shift.report import Budget

PRODUCTS = Path(__file__).parents[2] / "products"
QUICK = Budget(idle_seconds=0.1, batch_seconds=0.05, claim_seconds=60)
CUSTOMERS = ProductName("sales", "customers")


def test_a_slip_waits_in_quarantine_until_it_is_put_right(database_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", products=tmp_path / "products")
    shutil.copytree(PRODUCTS / "sales", settings.products / "sales")
    address = settings.source_file("sales", "app")
    address.parent.mkdir(parents=True)
    address.write_text(database_url)
    mesh = Mesh(settings)

    def capture() -> list[object]:
        assert not Shift(mesh.plan("sales", "app"), budget=QUICK).run().refused
        assert mesh.parity("sales.customers").equal
        return [entry.key["customer_id"] for one in quarantine(mesh) for entry in one.entries]

    def negative() -> list[object]:
        query = "select customer_id from shop.customers where credit_limit < 0"
        return [row[0] for row in connection.execute(query).fetchall()]

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(schema("sales").encode())
        application = Sales(connection, 1)
        application.seed()
        application.begin(1)
        assert capture() == []
        assert all(one.passed for one in checks.CheckLog(mesh.layout, CUSTOMERS).latest())
        application.mistype_credit_limit()
        assert capture() == negative() != []
        current = mesh.open("sales.customers").polars()
        assert current["credit_limit"].drop_nulls().min() >= 0
        failing = [one for one in checks.CheckLog(mesh.layout, CUSTOMERS).latest() if not one.passed]
        assert [(one.rule, one.status) for one in failing] == [
            ("customers.credit_limit_is_not_negative", "failed")
        ]
        first = negative()
        application.mistype_credit_limit()
        assert capture() == negative() != first

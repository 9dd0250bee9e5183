"""A new major version released: those who read the old one are not left without, until they have moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from mesh_assets.catalog.releases import Releases
from mesh_assets.cli.keeping import keep
from mesh_assets.contract.kept import KEPT_FILE, Kept
from mesh_assets.contract.support import support
from mesh_assets.derive.rebuild import rebuild
from mesh_assets.derive.shift import DeriveShift
from mesh_assets.ingest.shift import Shift
from mesh_assets.lake.access import Principal
from mesh_assets.lake.exact import text_of
from mesh_assets.lake.read import fresh
from mesh_assets.names import Layout, ProductName
from mesh_assets.product import Mesh
from mesh_assets.settings import Settings
from mesh_assets.shift.release import keep_old_versions
from mesh_assets.shift.report import Budget, Silent
from tests.contract.folder import Folder

QUICK = Budget(idle_seconds=0.1, batch_seconds=0.02, claim_seconds=60)
ORDERS, ORDERS_V1 = ProductName("sales", "orders"), ProductName("sales", "orders_v1")
NOTES_V1 = ProductName("sales", "notes_v1")
READING = (
    "import polars as pl\n\ndef transform(inputs):\n"
    "    return inputs['a'].select('id', note=pl.col('{column}').cast(pl.String))\n"
)


RAISED = ("version: 1.0.0", "version: 2.0.0")
MORE = "alter table shop.orders add column total numeric(12,2)"
TOTAL, RENAMED = ("name: amount,", "name: total,"), ("name: note,", "name: text,")


class Heard(Silent):
    """Remembers what shifts said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.when_asked: Callable[[], object] | None = None

    def message(self, text: str) -> None:
        self.said.append(text)

    def cancelled(self) -> bool:
        """Never; asked for the first time, the shift is under way."""
        begin, self.when_asked = self.when_asked, None
        if begin is not None:
            begin()
        return False


class Organisation:
    """Captured ``sales.orders``, and products derived from it in two domains."""

    def __init__(self, root: Path, url: str) -> None:
        self.folder = Folder(root / "products")
        self.url = url
        self.settings = Settings(home=root / "home", products=self.folder.root)
        self.heard = Heard()
        self.folder.domain("sales")
        self.folder.domain("finance")
        contract = self.folder.product("sales", "orders") / "contract.yaml"
        column = '      - {name: amount, logicalType: number, physicalType: "numeric(12,2)"}\n'
        contract.write_text(contract.read_text() + column)

    def reader(self, name: str, of: str, column: str, version: str = "") -> None:
        self.folder.derived(
            name,
            f"a: {{product: {of}{version and f', version: {version}'}, key: {{id: id}}}}",
            transform=READING.format(column=column),
        )

    def write(self, path: str, *replacements: tuple[str, str]) -> None:
        file = self.folder.root / path
        text = file.read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def capture(self) -> dict[str, str]:
        self.heard.said = []
        plan = Mesh(self.settings).plan("sales", "app")
        return Shift(plan, budget=QUICK, observer=self.heard).run().refused

    def derive(self) -> dict[str, str]:
        """Derive shifts of both domains, each again as long as it ends because contracts are others."""
        refused: dict[str, str] = {}
        for domain in ("sales", "finance"):
            reason = "contract changed"
            while reason == "contract changed":
                plans = Mesh(self.settings).derive_plans(domain)
                result = DeriveShift(plans, budget=QUICK, observer=self.heard).run()
                reason = result.reason
            refused |= result.refused
        return refused

    def rows(self, name: str, **at: int) -> list[tuple[object, ...]]:
        return Mesh(self.settings).open(name, **at).polars().sort("id").rows()  # type: ignore[arg-type]

    def inputs(self, name: str) -> list[ProductName]:
        product = Mesh(self.settings).product(name)
        return [one.product for one in product.definition.inputs]


@pytest.fixture
def organisation(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Organisation:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESH_SOURCE_SALES_APP_URL", database_url)
    made = Organisation(tmp_path, database_url)
    made.sql(
        "create schema shop",
        "create table shop.orders (id bigint primary key, amount numeric(12,2))",
        "insert into shop.orders values (1, 1.50), (2, null)",
    )
    return made


def test_the_readers_of_a_captured_product_stay_with_its_old_version(organisation: Organisation) -> None:
    mesh = organisation
    mesh.reader("finance.pinned", "sales.orders", "amount", version="1")
    mesh.reader("finance.unnamed", "sales.orders", "amount")
    mesh.reader("finance.other", "sales.orders", "id")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    before = mesh.rows("finance.pinned")
    assert before == mesh.rows("finance.unnamed") == [(1, "1.50"), (2, None)]
    # The team raises the major version and does nothing else; the application has both columns.
    mesh.sql(MORE)
    mesh.write(
        "sales/orders/contract.yaml",
        RAISED,
        TOTAL,
    )
    mesh.sql("insert into shop.orders values (3, 3.50, 3.50)")
    assert mesh.capture() == {}
    (told,) = [text for text in mesh.heard.said if "stays beside" in text]
    assert told == (
        "sales.orders_v1: version 1.0.0 of sales.orders stays beside 2.0.0 in products/sales/orders_v1, "
        "for finance.pinned, finance.unnamed"
    )
    assert mesh.derive() == {}
    assert mesh.inputs("finance.pinned") == mesh.inputs("finance.unnamed") == [ORDERS_V1]
    assert mesh.inputs("finance.other") == [ORDERS]
    expected = [*before, (3, "3.50")]
    assert mesh.rows("finance.pinned") == mesh.rows("finance.unnamed") == expected
    assert mesh.rows("finance.other") == [(1, "1"), (2, "2"), (3, "3")]
    assert mesh.rows("sales.orders_v1.orders") == [(1, Decimal("1.50")), (2, None), (3, Decimal("3.50"))]
    # Both go on; nothing is kept twice.
    mesh.sql("update shop.orders set amount = 9, total = 8 where id = 2")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    assert not [text for text in mesh.heard.said if "stays beside" in text]
    assert mesh.rows("finance.unnamed") == [(1, "1.50"), (2, "9.00"), (3, "3.50")]
    # One moves by saying so, one by being written anew; then the old version goes, and can still be read.
    mesh.write("finance/pinned/defs.yaml", ("version: 1", "version: 2"))
    mesh.write("finance/pinned/transform.py", ("amount", "total"))
    assert mesh.capture() == {}
    assert (mesh.folder.root / "sales" / "orders_v1").is_dir()
    mesh.write("finance/unnamed/transform.py", ("amount", "total"))
    assert mesh.inputs("finance.unnamed") == [ORDERS]
    assert mesh.capture() == {}
    assert [text for text in mesh.heard.said if "nobody reads it" in text] == [
        "sales.orders_v1: nobody reads it any more, so it is no longer made; what it held stays in the lake"
    ]
    assert not (mesh.folder.root / "sales" / "orders_v1").exists()
    assert mesh.derive() == {}
    assert mesh.rows("finance.pinned") == [(1, None), (2, "8.00"), (3, "3.50")]
    held = Path(Layout(mesh.settings.lake_root).product(ORDERS_V1))
    assert (held / "changes" / "orders" / "_delta_log").is_dir()


def test_an_old_version_has_the_values_that_its_type_cannot_hold(organisation: Organisation) -> None:
    mesh = organisation
    total = '      - {name: total, logicalType: number, physicalType: "numeric(12,2)"}\n'
    contract = mesh.folder.root / "sales" / "orders" / "contract.yaml"
    contract.write_text(contract.read_text() + total)
    mesh.sql(MORE, "insert into shop.orders values (3, 'NaN', 1)")
    mesh.reader("finance.pinned", "sales.orders", "total", version="1")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    mesh.write("sales/orders/contract.yaml", RAISED, (total, ""))
    mesh.sql("insert into shop.orders values (4, 'NaN', 2)")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    assert mesh.rows("finance.pinned") == [(1, None), (2, None), (3, "1.00"), (4, "2.00")]
    kept = fresh(
        Layout(mesh.settings.lake_root), ORDERS_V1, "orders", principal=Principal.local(), meta=True
    ).sort("id")
    texts = kept.select("id", "amount", text=text_of("amount")).collect().rows()
    assert texts == [(1, Decimal("1.50"), None), (2, None, None), (3, None, "NaN"), (4, None, "NaN")]


def test_the_readers_of_a_derived_product_stay_with_its_old_version(organisation: Organisation) -> None:
    mesh = organisation
    mesh.reader("sales.notes", "sales.orders", "amount")
    mesh.reader("finance.reader", "sales.notes", "note")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    # The transform is mended under version 1: the old version is kept as it was last.
    mesh.write("sales/notes/transform.py", ("cast(pl.String)", "cast(pl.String) + ' EUR'"))
    assert mesh.derive() == {}
    assert mesh.rows("finance.reader") == [(1, "1.50 EUR"), (2, None)]
    mesh.write("sales/notes/contract.yaml", RAISED, ("name: note,", "name: text,"))
    mesh.write("sales/notes/transform.py", ("note=", "text="), (" + ' EUR'", ""))
    assert mesh.derive() == {}
    assert [text.partition(" in ")[0] for text in mesh.heard.said if "stays beside" in text] == [
        "sales.notes_v1: version 1.0.0 of sales.notes stays beside 2.0.0"
    ]
    assert mesh.inputs("finance.reader") == [NOTES_V1]
    mesh.sql("insert into shop.orders values (3, 3.50)")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    assert mesh.rows("finance.reader") == [(1, "1.50 EUR"), (2, None), (3, "3.50 EUR")]
    newest = Mesh(mesh.settings).open("sales.notes").polars().sort("id")
    assert newest["text"].to_list() == ["1.50", None, "3.50"]
    # A folder that a team has edited is theirs.
    mesh.write("sales/notes_v1/transform.py", ("' EUR'", "' euros'"))
    mesh.write("finance/reader/transform.py", ("'note'", "'text'"))
    assert mesh.derive() == {}
    assert (mesh.folder.root / "sales" / "notes_v1").is_dir()
    assert mesh.rows("finance.reader") == [(1, "1.50"), (2, None), (3, "3.50")]


def test_a_running_shift_takes_no_version_under_a_contract_that_it_does_not_know(
    organisation: Organisation,
) -> None:
    mesh = organisation
    mesh.reader("sales.notes", "sales.orders", "amount")
    mesh.reader("finance.reader", "sales.notes", "note")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    stale = Mesh(mesh.settings).derive_plans("finance")
    shift = DeriveShift(stale, budget=Budget(idle_seconds=30.0, batch_seconds=0.02), observer=mesh.heard)

    def release() -> None:
        mesh.write("sales/notes/contract.yaml", RAISED, RENAMED)
        mesh.write("sales/notes/transform.py", ("note=", "text="))
        reason = "contract changed"
        while reason == "contract changed":
            reason = DeriveShift(Mesh(mesh.settings).derive_plans("sales"), budget=QUICK).run().reason

    # The team releases while the consumers' shift, whose plan was made before, is running.
    mesh.heard.when_asked = release
    assert shift.run().reason == "contract changed"
    assert mesh.rows("finance.reader") == [(1, "1.50"), (2, None)]
    mesh.heard.when_asked = None
    assert mesh.derive() == {}
    assert mesh.inputs("finance.reader") == [NOTES_V1]


def test_a_shift_planned_between_edit_and_release_takes_nothing_of_the_new_version(
    organisation: Organisation,
) -> None:
    mesh = organisation
    mesh.reader("finance.reader", "sales.orders", "amount")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    mesh.sql(MORE, "insert into shop.orders values (3, 3, 4)")
    mesh.write("sales/orders/contract.yaml", RAISED, TOTAL)
    # The plan has read the new contract; the old version is kept, and the new one made, while it runs.
    plans = Mesh(mesh.settings).derive_plans("finance")
    shift = DeriveShift(plans, budget=Budget(idle_seconds=30.0, batch_seconds=0.02), observer=mesh.heard)
    mesh.heard.when_asked = mesh.capture
    assert shift.run().reason == "contract changed"
    assert mesh.rows("finance.reader") == [(1, "1.50"), (2, None)]
    mesh.heard.when_asked = None
    assert mesh.derive() == {}
    assert mesh.inputs("finance.reader") == [ORDERS_V1]
    assert mesh.rows("finance.reader") == [(1, "1.50"), (2, None), (3, "3.00")]


def test_a_release_that_would_strand_readers_is_refused(organisation: Organisation) -> None:
    mesh = organisation
    mesh.reader("finance.reader", "sales.orders", "amount")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    # Nothing can be written there.
    (mesh.folder.root / "sales" / ".orders_v1.new").write_text("")
    original = (mesh.folder.root / "sales" / "orders" / "contract.yaml").read_text()
    mesh.write("sales/orders/contract.yaml", RAISED, TOTAL)
    mesh.sql(MORE, "insert into shop.orders values (3, 3)")
    refused = mesh.capture()["shop.orders"]
    assert "version 1.0.0 of sales.orders is still read, and cannot be kept" in refused
    assert "mesh keep sales.orders --from" in refused
    assert mesh.derive() == {}
    assert mesh.rows("finance.reader") == [(1, "1.50"), (2, None)]
    # Under the old contract it goes on, and nothing is lost.
    (mesh.folder.root / "sales" / "orders" / "contract.yaml").write_text(original)
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    assert mesh.rows("finance.reader") == [(1, "1.50"), (2, None), (3, "3.00")]


def test_where_nothing_can_be_written_the_old_version_is_delivered(
    organisation: Organisation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = organisation
    mesh.reader("finance.pinned", "sales.orders", "amount", version="1")
    mesh.reader("finance.unnamed", "sales.orders", "amount")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    shutil.copytree(mesh.folder.root, tmp_path / "before")
    (mesh.folder.root / "sales" / ".orders_v1.new").write_text("")
    mesh.write("sales/orders/contract.yaml", RAISED, TOTAL)
    mesh.sql(MORE, "insert into shop.orders values (3, 3, 4)")
    assert "commit products/sales/orders_v1 and deliver it" in mesh.capture()["shop.orders"]
    assert mesh.derive() == {}
    # What the error says, where the products are edited.
    keep(mesh.settings, "sales.orders", state=str(tmp_path / "before"), until=None, as_json=True)
    assert json.loads(capsys.readouterr().out)["readers"] == ["finance.unnamed"]
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    assert mesh.inputs("finance.pinned") == mesh.inputs("finance.unnamed") == [ORDERS_V1]
    expected = [(1, "1.50"), (2, None), (3, "3.00")]
    assert mesh.rows("finance.pinned") == mesh.rows("finance.unnamed") == expected
    assert Mesh(mesh.settings).open("sales.orders").polars().sort("id")["total"].to_list() == [
        None,
        None,
        Decimal("4.00"),
    ]
    # They move; the folder is the team's, so it stays until the team removes it.
    for name in ("pinned", "unnamed"):
        mesh.write(f"finance/{name}/transform.py", ("amount", "total"))
    mesh.write("finance/pinned/defs.yaml", ("version: 1", "version: 2"))
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    discovery = mesh.folder.discover()
    found = support(discovery, discovery.product(ORDERS_V1))
    assert found is not None
    assert found.fate == (
        "nobody reads it any more: remove products/sales/orders_v1; what it held stays in the lake"
    )
    shutil.rmtree(found.folder)
    mesh.sql("update shop.orders set total = 9 where id = 2")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    assert mesh.rows("finance.unnamed") == [(1, None), (2, "9.00"), (3, "4.00")]


def test_what_the_new_version_captures_no_more_cannot_be_kept(organisation: Organisation) -> None:
    mesh = organisation
    mesh.reader("finance.reader", "sales.orders", "amount")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    mesh.sql("create table shop.sales (id bigint primary key, amount numeric(12,2))")
    mesh.write(
        "sales/orders/contract.yaml",
        RAISED,
        ("  - name: orders\n    physicalName: shop.orders", "  - name: sales\n    physicalName: shop.sales"),
    )
    refused = mesh.capture()["shop.sales"]
    assert "version 1.0.0 of sales.orders promises orders, which version 2.0.0 captures no more" in refused
    assert "let the new version have the table as well until nobody reads the old one" in refused


def test_an_old_version_whose_support_is_over_is_not_kept(organisation: Organisation) -> None:
    mesh = organisation
    contract = "sales/orders/contract.yaml"
    mesh.write(
        contract, ("schema:", 'slaProperties:\n  - {property: endOfSupport, value: "2026-01-01"}\nschema:')
    )
    mesh.reader("finance.reader", "sales.orders", "amount", version="1")
    assert mesh.capture() == {}
    mesh.write(contract, RAISED, TOTAL)
    mesh.sql(MORE)
    assert mesh.capture() == {}
    assert not (mesh.folder.root / "sales" / "orders_v1").exists()


def test_a_kept_folder_that_is_lost_is_made_again_for_who_names_its_version(
    organisation: Organisation,
) -> None:
    mesh = organisation
    mesh.reader("finance.reader", "sales.orders", "amount", version="1")
    assert mesh.capture() == {}
    mesh.write("sales/orders/contract.yaml", RAISED)
    assert mesh.capture() == {}
    folder = mesh.folder.root / "sales" / "orders_v1"
    note = Kept.read(folder)
    assert note is not None
    assert note.untouched(folder)
    assert note.readers == {}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    product = Mesh(mesh.settings).product("sales.orders")
    layout = Layout(mesh.settings.lake_root)
    (told,) = keep_old_versions(layout, product)
    assert "for finance.reader" in told
    assert (folder / KEPT_FILE).is_file()
    assert keep_old_versions(layout, product) == []


def test_a_rebuild_keeps_the_old_version_too(organisation: Organisation) -> None:
    mesh = organisation
    mesh.reader("sales.notes", "sales.orders", "amount")
    mesh.reader("finance.reader", "sales.notes", "note", version="1")
    assert (mesh.capture(), mesh.derive()) == ({}, {})
    made_by = Releases(Layout(mesh.settings.lake_root).catalog(ProductName("sales", "notes"))).made_by(
        "1.0.0"
    )
    assert made_by is not None
    assert sorted(made_by) == ["defs.yaml", "transform.py"]
    mesh.write("sales/notes/contract.yaml", RAISED)
    whole = Mesh(mesh.settings)
    product, plan = whole.product("sales.notes"), whole.derive_plan("sales.notes")
    rebuild(whole.layout, product, plan, dry_run=True)
    assert not (mesh.folder.root / "sales" / "notes_v1").exists()
    said: list[str] = []
    rebuild(whole.layout, product, plan, tell=said.append)
    assert any("sales.notes_v1: version 1.0.0 of sales.notes stays beside 2.0.0" in text for text in said)
    assert mesh.inputs("finance.reader") == [NOTES_V1]

"""Definitions of domains and products: what they hold, and how a mistake in them reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_assets.contract import definition, load_domain, load_product
from mesh_assets.errors import ContractError
from mesh_assets.names import ProductName

DOMAIN = """\
type: mesh_assets.orchestration.Domain

attributes:
  description: >-
    Wins customers
    and takes their orders.
  owner: team:sales-engineering
  sources:
    app: {kind: postgres, description: The web shop.}
    crm:
      kind: postgres
"""
PRODUCT = "type: mesh_assets.orchestration.DataProduct\nattributes:\n  source: app\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("sales")
    folder.mkdir()
    return folder


def domain_error(folder: Path, text: str) -> str:
    (folder / "defs.yaml").write_text(text)
    with pytest.raises(ContractError) as caught:
        load_domain(folder / "defs.yaml")
    return str(caught.value)


def product_error(folder: Path, text: str) -> str:
    (folder / "defs.yaml").write_text(text)
    with pytest.raises(ContractError) as caught:
        load_product(folder / "defs.yaml")
    return str(caught.value)


def test_a_domain(folder: Path) -> None:
    (folder / "defs.yaml").write_text(DOMAIN)
    domain = load_domain(folder / "defs.yaml")
    assert domain.name == "sales"
    assert domain.description == "Wins customers and takes their orders."
    assert domain.owner == "team:sales-engineering"
    assert {name: (source.kind, source.line) for name, source in domain.sources.items()} == {
        "app": ("postgres", 9),
        "crm": ("postgres", 10),
    }


def test_a_product(folder: Path) -> None:
    (folder / "orders").mkdir()
    (folder / "orders" / "defs.yaml").write_text(PRODUCT)
    product = load_product(folder / "orders" / "defs.yaml")
    assert product.name == ProductName("sales", "orders")
    assert (product.source, product.line) == ("app", 3)


def test_attributes_are_checked_with_their_lines(folder: Path) -> None:
    assert domain_error(folder, DOMAIN.replace("owner:", "ownr:")) == (
        "sales/defs.yaml:3: a domain needs the field 'owner'\n"
        "sales/defs.yaml:7: a domain has no field 'ownr'\n"
        "  allowed: description, owner, sources\n"
        "  hint: did you mean 'owner'?"
    )
    assert domain_error(folder, DOMAIN.replace("postgres", "postgre", 1)) == (
        "sales/defs.yaml:9: kind 'postgre' is unknown\n  allowed: postgres\n  hint: did you mean 'postgres'?"
    )
    assert domain_error(folder, DOMAIN.replace("team:sales-engineering", "Sales")) == (
        "sales/defs.yaml:7: 'Sales' is not an owner\n  hint: write team:<name> or an e-mail address"
    )
    assert "sales/defs.yaml:10: 'CRM' cannot name a source" in domain_error(
        folder, DOMAIN.replace("crm:", "CRM:")
    )
    assert product_error(folder, PRODUCT.replace("app", "7")) == (
        "sales/defs.yaml:3: 'source' must be text, not the number 7\n  hint: put it in quotes"
    )


def test_the_type_is_checked(folder: Path) -> None:
    assert product_error(folder, PRODUCT.replace("DataProduct", "DataProdukt")) == (
        "sales/defs.yaml:1: type 'mesh_assets.orchestration.DataProdukt' is not what this folder holds\n"
        "  allowed: mesh_assets.orchestration.DataProduct\n"
        "  hint: did you mean 'mesh_assets.orchestration.DataProduct'?"
    )
    assert "needs the field 'type'" in product_error(folder, "attributes: {source: app}\n")
    assert "needs the field 'attributes'" in product_error(
        folder, "type: mesh_assets.orchestration.DataProduct\n"
    )
    assert "sales/defs.yaml:1: the file is empty" in product_error(folder, "")
    assert "must be a definition, not a list" in domain_error(folder, "- type\n")
    assert "must be a mapping, not 'app'" in product_error(
        folder, PRODUCT.split("attributes")[0] + "attributes: app\n"
    )


def test_what_else_dagster_reads_is_allowed(folder: Path) -> None:
    (folder / "defs.yaml").write_text(PRODUCT + "requirements: {env: [A]}\npost_processing: {assets: []}\n")
    assert load_product(folder / "defs.yaml").source == "app"


def test_a_folder_that_cannot_name_a_domain(tmp_path: Path) -> None:
    folder = tmp_path / "Sales Team"
    folder.mkdir()
    assert "the folder 'Sales Team' cannot name a domain" in domain_error(folder, DOMAIN)


def test_the_components_name_what_the_files_name() -> None:
    assert definition.DOMAIN_TYPE.rpartition(".")[0] == definition.PRODUCT_TYPE.rpartition(".")[0]

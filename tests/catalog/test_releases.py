"""Released contracts: kept as they were, read back equal, never overwritten."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mesh_assets.catalog.releases import Releases, version_order
from mesh_assets.contract.discovery import discover
from mesh_assets.contract.document import parse
from mesh_assets.contract.loader import build
from mesh_assets.contract.model import Contract
from mesh_assets.errors import ContractError, LakeError, LayoutUnknown

PRODUCTS = Path(__file__).resolve().parents[2] / "products"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _contract(version: str = "1.0.0", purpose: str = "Every order.") -> Contract:
    text = (PRODUCTS / "sales" / "orders" / "contract.yaml").read_text()
    changed = text.replace("version: 1.0.0", f"version: {version!r}", 1)
    document = parse(changed, Path("contract.yaml"))
    document.data["description"]["purpose"] = purpose
    return build(document)


def test_every_sample_contract_reads_back_equal(tmp_path: Path) -> None:
    for number, product in enumerate(discover(PRODUCTS).products.values()):
        releases = Releases(str(tmp_path / str(number)))
        assert releases.latest() is None
        assert releases.all() == []
        releases.record(product.contract, AT)
        held = releases.latest()
        assert held == product.contract
        assert held is not None
        assert held.hash == product.contract.hash
        assert held.content == product.contract.content
        assert held.to_yaml() == product.contract.to_yaml()


def test_versions_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    releases = Releases(str(tmp_path))
    for version in ("1.10.0", "1.9.0", "2.0.0", "1.9.0-beta/1"):
        releases.record(_contract(version), AT)
    assert [one.contract.version for one in releases.all()] == ["1.9.0", "1.9.0-beta/1", "1.10.0", "2.0.0"]
    latest = releases.latest()
    assert latest is not None
    assert latest.version == "2.0.0"
    at = releases.at("1.9.0-beta/1")
    assert at is not None
    assert at.released_at == AT
    assert releases.at("3.0.0") is None
    assert version_order("1.0") < version_order("1.0.1")


def test_a_release_stays_as_it_was(tmp_path: Path) -> None:
    releases = Releases(str(tmp_path))
    first = releases.record(_contract(), AT)
    bytes_before = first.contract.path.read_bytes()
    assert releases.record(_contract(), datetime.now(UTC)).released_at == AT
    with pytest.raises(ContractError, match=r"contract.yaml:1: version 1.0.0 .* other content"):
        releases.record(_contract(purpose="Something else."))
    assert first.contract.path.read_bytes() == bytes_before
    assert [path.name for path in (tmp_path / "contracts").iterdir()] == ["1.0.0.json"]


def test_a_damaged_or_newer_release_is_named(tmp_path: Path) -> None:
    releases = Releases(str(tmp_path))
    file = releases.record(replace(_contract()), AT).contract.path
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(LayoutUnknown, match="format 99"):
        releases.latest()
    file.write_text(json.dumps(record | {"hash": "0" * 64}))
    with pytest.raises(LakeError, match="was changed"):
        releases.at("1.0.0")
    file.write_text("{")
    with pytest.raises(LakeError, match=r"1\.0\.0\.json cannot be read"):
        releases.all()

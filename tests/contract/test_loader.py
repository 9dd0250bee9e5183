"""Contracts: what loads, what is refused, and how a refusal reads.

Each folder of ``fixtures`` is a case: ``contract.yaml``, and ``expected.txt`` if it is refused.
The folder stands for ``products/sales/returns``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.contract import document, load, standard
from mesh_assets.contract.loader import build, content_hash
from mesh_assets.errors import ContractError, UnknownName
from mesh_assets.names import ProductName

FIXTURES = Path(__file__).parent / "fixtures"
RETURNS = ProductName("sales", "returns")
BROKEN = sorted(path.parent.name for path in FIXTURES.glob("*/expected.txt"))
SOUND = sorted({path.parent.name for path in FIXTURES.glob("*/contract.yaml")} - set(BROKEN))
# The standard's own schema of version 3.1.0 (Bitol, Apache-2.0).
ODCS_31 = json.loads((Path(__file__).parent / "odcs-json-schema-v3.1.0.json").read_text())


def fixture(case: str) -> Path:
    return FIXTURES / case / "contract.yaml"


@pytest.mark.parametrize("case", BROKEN)
def test_a_mistake_is_reported_with_file_line_and_remedy(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / case)
    with pytest.raises(ContractError) as caught:
        load("contract.yaml", name=RETURNS)
    assert str(caught.value) + "\n" == (FIXTURES / case / "expected.txt").read_text()


@pytest.mark.parametrize("case", BROKEN)
def test_every_reported_line_exists(case: str) -> None:
    with pytest.raises(ContractError) as caught:
        load(fixture(case), name=RETURNS)
    line_count = max(1, len(fixture(case).read_text().splitlines()))
    assert caught.value.mistakes
    assert all(1 <= mistake.line <= line_count for mistake in caught.value.mistakes)


@pytest.mark.parametrize("case", SOUND)
def test_what_loads_is_written_as_odcs_3_1(case: str, tmp_path: Path) -> None:
    contract = load(fixture(case), name=RETURNS)
    text = contract.to_yaml()
    jsonschema.Draft201909Validator(ODCS_31).validate(yaml.safe_load(text))
    assert yaml.safe_load(text)["apiVersion"] == "v3.1.0"
    again = tmp_path / "contract.yaml"
    again.write_text(text)
    reread = load(again, name=RETURNS)
    assert (reread.name, reread.owners, reread.version) == (contract.name, contract.owners, contract.version)
    assert [table.key for table in reread.tables] == [table.key for table in contract.tables]


def test_both_kinds_of_case_exist() -> None:
    assert len(BROKEN) > 15
    assert set(SOUND) == {"minimal", "odcs_3_0", "odcs_3_2", "values_as_written"}


def test_a_missing_file_and_a_wrong_encoding_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContractError, match=r"^contract.yaml:1: the file is missing"):
        load("contract.yaml")
    Path("contract.yaml").write_bytes(b"kind: DataContract\nname: caf\xe9\n")
    with pytest.raises(ContractError, match=r"^contract.yaml:2: the file is not UTF-8"):
        load("contract.yaml")
    with pytest.raises(ContractError, match=r"^\.:1: the file cannot be read: Is a directory"):
        load(tmp_path)


def test_without_a_folder_the_contract_names_itself() -> None:
    assert load(fixture("minimal")).name == RETURNS


def test_lines_tell_where_each_element_stands() -> None:
    contract = load(fixture("odcs_3_2"))
    lines = fixture("odcs_3_2").read_text().splitlines()
    table = contract.table("returns")
    assert "- name: returns" in lines[table.line - 1]
    for column in table.columns:
        assert lines[column.line - 1].strip() == f"- name: {column.name}"
    assert "property: latency" in lines[contract.sla[0].line - 1]


def test_the_key_follows_its_positions_and_is_never_null() -> None:
    table = load(fixture("odcs_3_2")).table("returns")
    assert table.key == ("return_id", "order_id")
    assert all(table.column(name).required for name in table.key)


def test_owners_are_the_team_and_members_with_that_role() -> None:
    assert load(fixture("odcs_3_2")).owners == ("team:sales-engineering", "lena.hofer@mesh.example")
    assert load(fixture("odcs_3_0")).owners == ("team:sales-engineering",)


def test_promises_give_seconds() -> None:
    latency = load(fixture("odcs_3_2")).promise("latency")
    assert latency is not None
    assert latency.seconds == 90.0
    assert load(fixture("minimal")).promise("latency") is None
    four_days = load(fixture("odcs_3_0")).promise("latency")
    assert four_days is not None
    assert four_days.seconds == 4 * 86400


def test_words_are_kept_as_they_were_written() -> None:
    column = load(fixture("values_as_written")).table("returns").column("country")
    assert column.examples == ("NO", "on", "12:30", "007", "1_000", "2026-01-02", 12, 1.5, True, None)
    assert column.description == "Two letters, as in ISO 3166."


def test_what_only_3_2_can_say_survives_in_3_1() -> None:
    written = yaml.safe_load(load(fixture("odcs_3_2")).to_yaml())
    carried = {item["property"]: item["value"] for item in written["customProperties"]}
    assert carried["context"] == "Amounts are in euros."
    assert [item["path"] for item in carried["odcs32"]] == [
        "customProperties/0/vendor",
        "slaProperties/0/customProperties",
        "schema/0/relationships/0/id",
    ]
    reason, attributes, embedding = written["schema"][0]["properties"][2:]
    assert {
        "property": "enum",
        "value": [{"value": "broken", "label": "Broken"}, {"value": "late"}],
    } in reason["customProperties"]
    assert attributes["logicalType"] == "object"
    assert embedding["logicalType"] == "array"
    assert {"property": "logicalTypeOptions", "value": {"dimensions": 3}} in embedding["customProperties"]


def test_the_words_of_3_0_become_those_of_3_1() -> None:
    contract = load(fixture("odcs_3_0"))
    assert contract.quality[0].definition["metric"] == "duplicateValues"
    assert contract.content["team"]["members"][0]["dateIn"] == "2024-01-01"


def test_the_hash_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    original = load(fixture("minimal"))
    text = fixture("minimal").read_text()
    same = tmp_path / "same.yaml"
    same.write_text(
        "# A comment.\n"
        + text.replace("v3.1.0", "v3.2.0").replace("name: returns\n", "", 1)
        + "name: returns\n"
    )
    assert load(same).hash == original.hash
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("bigint", "integer"))
    assert load(other).hash != original.hash


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), st.lists, max_leaves=5)))
def test_the_hash_ignores_the_order_of_keys(content: dict[str, Any]) -> None:
    assert content_hash(content) == content_hash(dict(reversed(content.items())))


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "name",
                        "schema",
                        "properties",
                        "team",
                        "members",
                        "quality",
                        "items",
                        "enum",
                        "primaryKey",
                        "slaProperties",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_shape_of_values_breaks_the_checks(data: Any) -> None:
    """Whatever stands where, the answer is a contract or a ContractError."""
    full = yaml.safe_load(fixture("odcs_3_2").read_text())
    for field in ("schema", "team", "slaProperties", "servers", "name"):
        text = yaml.dump(full | {field: data}, Dumper=yaml.CSafeDumper)
        parsed = document.parse(text, Path("contract.yaml"))
        with contextlib.suppress(ContractError):
            build(parsed)


def test_a_bomb_of_aliases_is_refused() -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    with pytest.raises(ContractError, match="more than"):
        document.parse("a0: &a0 [x]\n" + levels, Path("contract.yaml"))


def test_a_contract_is_frozen_and_travels() -> None:
    contract = load(fixture("odcs_3_2"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        contract.version = "2"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(contract)) == contract
    assert hash(contract) == hash(load(fixture("odcs_3_2")))
    with pytest.raises(UnknownName, match="return_lines"):
        contract.table("return_lines")
    with pytest.raises(UnknownName, match="did you mean 'return_id'"):
        contract.table("returns").column("retrun_id")


def test_loading_is_light() -> None:
    load(fixture("odcs_3_2"))
    started = time.process_time()
    for _ in range(10):
        load(fixture("odcs_3_2"))
    assert (time.process_time() - started) / 10 < 0.1


def test_units_are_those_of_messages() -> None:
    assert set(standard.UNITS) <= set(standard.UNIT_SECONDS)

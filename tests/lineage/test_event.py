"""Run events: what OpenLineage asks for, and nothing that depends on where this runs."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attr
import pyarrow as pa
import pytest
from openlineage.client.event_v2 import RunEvent, RunState
from openlineage.client.facet_v2 import RunFacet, ownership_job, tags_run
from openlineage.client.serde import Serde

from mesh_assets import names
from mesh_assets.lineage import event as lineage
from mesh_assets.lineage.event import LineageRun, Parent, datasets, lake_input, lake_output, source_table

AT = datetime(2026, 1, 31, 13, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
RUN = LineageRun(*names.lineage_job("sales", "app", "capture"), kind="CAPTURE", streaming=True)
SCHEMA = pa.schema(
    [
        ("order_id", pa.int64()),
        ("tags", pa.list_(pa.string())),
        ("_before", pa.struct([("order_id", pa.int64())])),
        ("_exact", pa.map_(pa.string(), pa.string())),
    ]
)


def content(event: RunEvent) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(lineage.to_json(event))
    return loaded


def facets(value: object) -> list[dict[str, Any]]:
    """Every facet anywhere in an event."""
    if isinstance(value, list):
        return [facet for item in value for facet in facets(item)]
    if isinstance(value, dict):
        own = [value] if "_schemaURL" in value else []
        return own + [facet for item in value.values() for facet in facets(item)]
    return []


def test_an_event_has_what_the_specification_requires() -> None:
    start = content(RUN.start(AT))
    assert start["eventType"] == "START"
    assert start["eventTime"] == "2026-01-31T12:00:00.000005Z"
    assert start["job"]["namespace"] == "mesh.sales"
    assert start["job"]["name"] == "app.capture"
    assert start["schemaURL"].endswith("OpenLineage.json#/$defs/RunEvent")
    assert uuid.UUID(start["run"]["runId"]).version == 7
    assert start["job"]["facets"]["jobType"]["processingType"] == "STREAMING"
    assert start["job"]["facets"]["jobType"]["jobType"] == "CAPTURE"
    assert start["run"]["facets"]["processing_engine"]["name"] == "mesh-assets"


def test_all_events_of_a_run_have_its_id() -> None:
    events = [RUN.start(), RUN.running(), RUN.complete(), RUN.abort(), RUN.fail(ValueError("no"))]
    assert {event.run.runId for event in events} == {RUN.run_id}
    assert [content(event)["eventType"] for event in events] == [
        "START",
        "RUNNING",
        "COMPLETE",
        "ABORT",
        "FAIL",
    ]


def test_runs_differ_and_sort_by_time() -> None:
    now = datetime.now(UTC)
    ids = [lineage.new_run_id(now + timedelta(seconds=second)) for second in range(5)]
    assert ids == sorted(ids)
    assert LineageRun("n", "j", "FOLD").run_id != LineageRun("n", "j", "FOLD").run_id


def test_the_parent_is_named() -> None:
    parent = Parent(str(uuid.uuid4()), "dagster", "sales.shift")
    facet = content(LineageRun("mesh.sales", "app.capture", "CAPTURE", parent=parent).start())["run"][
        "facets"
    ]
    assert facet["parent"]["run"]["runId"] == parent.run_id
    assert facet["parent"]["job"]["name"] == "sales.shift"
    with pytest.raises(ValueError, match="badly formed"):
        LineageRun("mesh.sales", "app.capture", "CAPTURE", parent=Parent("7", "dagster", "x")).start()


def test_a_failure_tells_its_message_and_where_it_was() -> None:
    def fail() -> None:
        raise ValueError("the slot is gone")

    with pytest.raises(ValueError, match="slot") as caught:
        fail()
    facet = content(RUN.fail(caught.value))["run"]["facets"]["errorMessage"]
    assert facet["message"] == "the slot is gone"
    assert facet["programmingLanguage"] == "PYTHON"
    assert "in fail" in facet["stackTrace"]
    assert lineage.error_facet(KeyboardInterrupt()).message == "KeyboardInterrupt"


def test_a_source_table_is_named_by_the_naming_rules() -> None:
    read = source_table(
        "db.example", 5432, "sales", "shop.orders", position="0/16B3748", row_count=3, schema=SCHEMA
    )
    assert (read.namespace, read.name) == ("postgres://db.example:5432", "sales.shop.orders")
    inputs = content(RUN.running(inputs=[read]))["inputs"][0]
    assert inputs["facets"]["version"]["datasetVersion"] == "0/16B3748"
    assert inputs["inputFacets"]["inputStatistics"]["rowCount"] == 3
    assert "storage" not in inputs["facets"]


def test_a_lake_table_has_version_storage_and_statistics() -> None:
    written = lake_output(
        "s3://lake/sales/orders", version=9, first_version=7, row_count=5, byte_count=100, file_count=3
    )
    outputs = content(RUN.running(outputs=[written]))["outputs"][0]
    assert (outputs["namespace"], outputs["name"]) == ("s3://lake", "sales/orders")
    assert outputs["facets"]["version"]["datasetVersion"] == "9"
    assert outputs["facets"]["storage"]["storageLayer"] == "delta"
    span = outputs["facets"]["mesh_deltaVersions"]
    assert (span["firstVersion"], span["lastVersion"]) == (7, 9)
    statistics = outputs["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"], statistics["fileCount"]) == (5, 100, 3)
    with pytest.raises(ValueError, match="first_version 10 is after version 9"):
        lake_input("s3://lake/sales/orders", version=9, first_version=10)


def test_what_is_not_known_is_left_out() -> None:
    bare = content(RUN.start(inputs=[lake_input("/lake/a")], outputs=[lake_output("/lake/b")]))
    assert set(bare["inputs"][0]["facets"]) == {"storage"}
    assert bare["outputs"][0]["outputFacets"] == {}
    assert bare["inputs"][0]["namespace"] == "file"


def test_columns_are_told_with_their_nested_fields() -> None:
    facet = lineage.schema_facet(SCHEMA, {"order_id": "Number of the order."})
    assert facet.fields is not None
    told = [
        (field.name, field.type, [(inner.name, inner.type) for inner in field.fields or []])
        for field in facet.fields
    ]
    assert told == [
        ("order_id", "int64", []),
        ("tags", "array", [("_element", "string")]),
        ("_before", "struct", [("order_id", "int64")]),
        ("_exact", "map", [("_key", "string"), ("_value", "string")]),
    ]
    assert [field.ordinal_position for field in facet.fields] == [1, 2, 3, 4]
    assert facet.fields[0].description == "Number of the order."


def test_further_facets_have_room() -> None:
    run = LineageRun(
        "mesh.sales",
        "app.capture",
        "CAPTURE",
        run_facets={"tags": tags_run.TagsRunFacet(tags=[])},
        job_facets={"ownership": ownership_job.OwnershipJobFacet([ownership_job.Owner("team:sales")])},
    )
    start = content(run.start())
    assert "tags" in start["run"]["facets"]
    assert start["job"]["facets"]["ownership"]["owners"][0]["name"] == "team:sales"


def test_every_facet_names_this_program_and_its_schema() -> None:
    event = RUN.fail(
        ValueError("no"),
        inputs=[source_table("h", 1, "d", "s.t", position="0/1", row_count=1, schema=SCHEMA)],
        outputs=[lake_output("/lake/b", version=2, first_version=1, row_count=1, schema=SCHEMA)],
    )
    found = facets(content(event))
    assert len(found) == 11
    assert {facet["_producer"] for facet in found} == {lineage.PRODUCER}
    assert all(facet["_schemaURL"] for facet in found)
    assert lineage.PRODUCER.startswith("urn:mesh-assets:")


def test_datasets_are_listed_with_their_versions() -> None:
    event = RUN.running(
        inputs=[source_table("h", 1, "d", "s.t")], outputs=[lake_output("/lake/b", version=2)]
    )
    assert datasets(event, "inputs") == [{"namespace": "postgres://h:1", "name": "d.s.t", "version": None}]
    assert datasets(event, "outputs") == [{"namespace": "file", "name": "/lake/b", "version": "2"}]


@attr.define
class OddRunFacet(RunFacet):
    """A facet of somebody else's with whatever it likes."""

    content: Any


@pytest.mark.parametrize(
    "content",
    [
        {"none": None, "nested": {"none": None, "empty": {}}, "list": [None, {}, [], {"none": None}, 0, ""]},
        {"tuple": (1, None, {}), "set": {7}, "bool": True, "float": 0.1, "nan": float("inf"), "text": "ü"},
        {"moment": AT, "day": AT.date(), "id": uuid.UUID(int=5), "state": RunState.START},
        [tags_run.TagsRunFacetFields(key="a", value="b", source="c"), None],
        {"what": object()},
    ],
)
def test_the_json_is_that_of_the_client(content: object) -> None:
    run = LineageRun(
        *names.lineage_job("sales", "app", "capture"),
        kind="CAPTURE",
        parent=Parent(str(uuid.UUID(int=9)), "n", "j"),
    )
    event = run.start(
        AT,
        inputs=[source_table("db", 5432, "sales", "public.orders", position="0/16B3748", row_count=7)],
        outputs=[lake_output("/lake/x", version=3, first_version=1, row_count=7, schema=SCHEMA)],
        facets={"odd": OddRunFacet(content=content), "none": None},  # type: ignore[dict-item]
    )
    assert lineage.to_json(event) == Serde.to_json(event)

"""Facets of OpenLineage, built from plain values; nothing here does I/O except asking git where code is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import attr
import psutil
import pyarrow as pa
from openlineage.client.facet_v2 import (
    DatasetFacet,
    RunFacet,
    catalog_dataset,
    column_lineage_dataset,
    data_quality_assertions_dataset,
    data_quality_metrics_dataset,
    data_quality_metrics_input_dataset,
    datasource_dataset,
    documentation_dataset,
    lifecycle_state_change_dataset,
    ownership_dataset,
    ownership_job,
    schema_dataset,
    source_code_location_job,
    storage_dataset,
    symlinks_dataset,
    tags_dataset,
)
from openlineage.client.git import get_git_branch, get_git_repo_url, get_git_version

from mesh_assets.contract.model import Contract, TableContract
from mesh_assets.lineage.columns import ColumnSource
from mesh_assets.lineage.secret import redacted

PRODUCER = f"urn:mesh-assets:{metadata.version('mesh-assets')}"
"""Who made an event: this program and its version."""

_SOURCE = "MESH"


@attr.define
class DeltaVersionsDatasetFacet(DatasetFacet):
    """Which Delta versions of a table an event covers: the first, the last, and every span of them."""

    firstVersion: int  # noqa: N815 - OpenLineage writes fields in camel case
    lastVersion: int  # noqa: N815
    versions: list[list[int]]

    @staticmethod
    def _get_schema() -> str:
        return "urn:mesh-assets:facet:1-1-0:DeltaVersionsDatasetFacet"


@attr.define
class ProcessRunFacet(RunFacet):
    """Which process a run lives in; it is over when that is gone."""

    host: str
    pid: int
    started: float
    orchestrator: str

    @staticmethod
    def _get_schema() -> str:
        return "urn:mesh-assets:facet:1-0-0:ProcessRunFacet"


@attr.define
class ProductVersionDatasetFacet(DatasetFacet):
    """Which version of its product a table was read or written for."""

    product: str
    version: int

    @staticmethod
    def _get_schema() -> str:
        return "urn:mesh-assets:facet:1-0-0:ProductVersionDatasetFacet"


@dataclass(frozen=True)
class Assertion:
    """One check of a table or column, and how it came out.

    Attributes:
        name: the rule's id.
        assertion: what kind of rule it is, such as ``not_null``.
        column: the column it is about; None: the table.
        severity: ``error`` or ``warn``.
    """

    name: str
    assertion: str
    success: bool
    column: str | None = None
    severity: str | None = None
    description: str | None = None
    expected: str | None = None
    actual: str | None = None


@dataclass(frozen=True)
class ColumnMetrics:
    """What is known of the values of one column; numbers only, as the specification asks."""

    null_count: int | None = None
    distinct_count: int | None = None
    count: int | None = None
    total: float | None = None
    low: float | None = None
    high: float | None = None


def schema_facet(
    columns: pa.Schema, descriptions: Mapping[str, str] | None = None
) -> schema_dataset.SchemaDatasetFacet:
    """The columns of a table; nested fields of structs and lists too."""
    described = descriptions or {}
    fields = [
        _field(field, number, described.get(field.name) or None)
        for number, field in enumerate(columns, start=1)
    ]
    return schema_dataset.SchemaDatasetFacet(fields=fields, producer=PRODUCER)


def _field(
    field: pa.Field[pa.DataType], number: int | None, description: str | None
) -> schema_dataset.SchemaDatasetFacetFields:
    kind = field.type
    children: list[schema_dataset.SchemaDatasetFacetFields] = []
    name = str(kind)
    if pa.types.is_struct(kind):
        name = "struct"
        children = [_field(kind.field(index), None, None) for index in range(kind.num_fields)]
    elif pa.types.is_list(kind):
        name = "array"
        children = [_field(kind.value_field.with_name("_element"), None, None)]
    elif pa.types.is_map(kind):
        name = "map"
        children = [
            _field(pa.field("_key", kind.key_type), None, None),
            _field(pa.field("_value", kind.item_type), None, None),
        ]
    return schema_dataset.SchemaDatasetFacetFields(
        name=field.name, type=name, description=description, ordinal_position=number, fields=children
    )


def storage() -> storage_dataset.StorageDatasetFacet:
    """The table is Delta over Parquet."""
    return storage_dataset.StorageDatasetFacet(storageLayer="delta", fileFormat="parquet", producer=PRODUCER)


def data_source(name: str, address: str) -> datasource_dataset.DatasourceDatasetFacet:
    """Where a table of an application lies; the address without its password."""
    return datasource_dataset.DatasourceDatasetFacet(name=name, uri=redacted(address), producer=PRODUCER)


def delta_versions(versions: Iterable[int]) -> DeltaVersionsDatasetFacet:
    """The Delta versions that an event covers; there is at least one."""
    spans = spans_of(versions)
    return DeltaVersionsDatasetFacet(
        firstVersion=spans[0][0], lastVersion=spans[-1][1], versions=spans, producer=PRODUCER
    )


def product_version(product: str, version: int) -> ProductVersionDatasetFacet:
    """Which version of its product a table was read or written for."""
    return ProductVersionDatasetFacet(product=product, version=version, producer=PRODUCER)


def spans_of(versions: Iterable[int]) -> list[list[int]]:
    """Numbers as spans of neighbours, both ends included, in order."""
    spans: list[list[int]] = []
    for version in sorted(set(versions)):
        if spans and spans[-1][1] == version - 1:
            spans[-1][1] = version
        else:
            spans.append([version, version])
    return spans


def symlink(namespace: str, name: str) -> symlinks_dataset.SymlinksDatasetFacet:
    """Another name of the same table."""
    kind = "TABLE" if ":" not in name else name.rpartition(":")[2].upper()
    identifier = symlinks_dataset.Identifier(namespace=namespace, name=name, type=kind)
    return symlinks_dataset.SymlinksDatasetFacet(identifiers=[identifier], producer=PRODUCER)


def catalog(warehouse: str) -> catalog_dataset.CatalogDatasetFacet:
    """The catalog that knows the table: the mesh's own, over this lake."""
    return catalog_dataset.CatalogDatasetFacet(
        framework="delta", type="mesh", name="mesh", warehouseUri=redacted(warehouse), producer=PRODUCER
    )


def dataset_owners(owners: Sequence[str]) -> ownership_dataset.OwnershipDatasetFacet:
    """Who owns a table: the owning team first."""
    listed = [
        ownership_dataset.Owner(name=owner, type="OWNER" if number == 0 else "STEWARD")
        for number, owner in enumerate(owners)
    ]
    return ownership_dataset.OwnershipDatasetFacet(owners=listed, producer=PRODUCER)


def job_owners(owners: Sequence[str]) -> ownership_job.OwnershipJobFacet:
    """Who owns a job."""
    listed = [ownership_job.Owner(name=owner, type="OWNER") for owner in owners]
    return ownership_job.OwnershipJobFacet(owners=listed, producer=PRODUCER)


def tags(contract: Contract, table: TableContract | None) -> tags_dataset.TagsDatasetFacet | None:
    """The contract's tags, and tags and classification of each column."""
    field = tags_dataset.TagsDatasetFacetFields
    found = [field(key=tag, value="true", source=_SOURCE) for tag in contract.tags]
    if table is not None:
        found += [
            field(key=tag, value="true", source=_SOURCE) for tag in table.tags if tag not in contract.tags
        ]
        for column in table.columns:
            found += [field(key=tag, value="true", source=_SOURCE, field=column.name) for tag in column.tags]
            if column.classification:
                found.append(
                    field(
                        key="classification",
                        value=column.classification,
                        source=_SOURCE,
                        field=column.name,
                    )
                )
    return tags_dataset.TagsDatasetFacet(tags=found, producer=PRODUCER) if found else None


def documentation(text: str) -> documentation_dataset.DocumentationDatasetFacet:
    """What a table holds, in its owner's words."""
    return documentation_dataset.DocumentationDatasetFacet(
        description=text, contentType="text/plain", producer=PRODUCER
    )


Change = Literal["CREATE", "ALTER", "TRUNCATE", "OVERWRITE", "DROP", "RENAME"]


def lifecycle(change: Change) -> lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet:
    """What happened to the table as a whole."""
    return lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet(
        lifecycleStateChange=lifecycle_state_change_dataset.LifecycleStateChange[change], producer=PRODUCER
    )


def column_lineage(
    columns: Mapping[str, Sequence[ColumnSource]], inputs: Mapping[str, tuple[str, str]]
) -> column_lineage_dataset.ColumnLineageDatasetFacet:
    """Which input columns each column is made of.

    What affects every column in the same way is told once, for the whole table.

    Args:
        columns: the sources of each output column.
        inputs: OpenLineage namespace and name of each input.
    """
    everywhere = _shared(columns)
    fields = {}
    for column, sources in columns.items():
        own = [source for source in sources if source not in everywhere]
        fields[column] = column_lineage_dataset.Fields(inputFields=_input_fields(own, inputs))
    return column_lineage_dataset.ColumnLineageDatasetFacet(
        fields=fields,
        dataset=_input_fields(sorted(everywhere), inputs) or None,
        producer=PRODUCER,
    )


def _shared(columns: Mapping[str, Sequence[ColumnSource]]) -> set[ColumnSource]:
    """Indirect sources that all columns have."""
    if len(columns) < 2:
        return set()
    every = [{source for source in sources if source.kind == "INDIRECT"} for sources in columns.values()]
    return set.intersection(*every)


def _input_fields(
    sources: Iterable[ColumnSource], inputs: Mapping[str, tuple[str, str]]
) -> list[column_lineage_dataset.InputField]:
    grouped: dict[tuple[str, str], list[column_lineage_dataset.Transformation]] = {}
    for source in sources:
        grouped.setdefault((source.input, source.column), []).append(
            column_lineage_dataset.Transformation(
                type=source.kind, subtype=source.subtype, masking=source.masking
            )
        )
    return [
        column_lineage_dataset.InputField(
            namespace=inputs[name][0], name=inputs[name][1], field=column, transformations=how
        )
        for (name, column), how in grouped.items()
    ]


def assertions(
    checks: Iterable[Assertion],
) -> data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet:
    """How checks came out."""
    return data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
        assertions=[
            data_quality_assertions_dataset.Assertion(
                assertion=check.assertion,
                success=check.success,
                column=check.column,
                severity=check.severity,
                name=check.name,
                description=check.description,
                expected=check.expected,
                actual=check.actual,
                params=None,
            )
            for check in checks
        ],
        producer=PRODUCER,
    )


def dataset_metrics(
    *,
    row_count: int | None = None,
    byte_count: int | None = None,
    file_count: int | None = None,
    columns: Mapping[str, ColumnMetrics] | None = None,
    at: datetime | None = None,
) -> data_quality_metrics_dataset.DataQualityMetricsDatasetFacet:
    """What is known of a table that was written."""
    return data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
        columnMetrics={
            name: data_quality_metrics_dataset.ColumnMetrics(
                nullCount=known.null_count,
                distinctCount=known.distinct_count,
                count=known.count,
                sum=known.total,
                min=known.low,
                max=known.high,
                quantiles=None,
            )
            for name, known in (columns or {}).items()
        },
        rowCount=row_count,
        bytes=byte_count,
        fileCount=file_count,
        captureDate=moment(at) if at else None,
        producer=PRODUCER,
    )


def input_metrics(
    *,
    row_count: int | None = None,
    byte_count: int | None = None,
    file_count: int | None = None,
    columns: Mapping[str, ColumnMetrics] | None = None,
) -> data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet:
    """What is known of a table that was read."""
    return data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
        columnMetrics={
            name: data_quality_metrics_input_dataset.ColumnMetrics(
                nullCount=known.null_count,
                distinctCount=known.distinct_count,
                count=known.count,
                sum=known.total,
                min=known.low,
                max=known.high,
                quantiles=None,
            )
            for name, known in (columns or {}).items()
        },
        rowCount=row_count,
        bytes=byte_count,
        fileCount=file_count,
        producer=PRODUCER,
    )


def code_location(path: Path | str, version: str = "") -> source_code_location_job.SourceCodeLocationJobFacet:
    """Where a job's code lies.

    Args:
        path: the file.
        version: of its content; left out, the commit of the git repository that holds it, if one does.
    """
    file = Path(path).absolute()
    folder = _repository(str(file.parent))
    commit = branch = remote = None
    inside = file.name
    if folder is not None:
        git = folder / ".git"
        commit, branch = get_git_version(git), get_git_branch(git)
        remote = get_git_repo_url(git_dir=git)
        inside = file.relative_to(folder).as_posix()
    repository = redacted(remote) if remote else None
    return source_code_location_job.SourceCodeLocationJobFacet(
        type="git" if folder is not None else "file",
        url=repository or file.as_uri(),
        repoUrl=repository,
        path=inside,
        version=version or commit,
        branch=branch,
        producer=PRODUCER,
    )


@cache
def _repository(folder: str) -> Path | None:
    """The top of the git repository that a folder is in; worktrees do not count as one."""
    for parent in [Path(folder), *Path(folder).parents]:
        if (parent / ".git").is_dir():
            return parent
    return None


def this_process(orchestrator: str = "") -> ProcessRunFacet:
    """The process that this runs in."""
    return ProcessRunFacet(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=round(psutil.Process().create_time(), 2),
        orchestrator=orchestrator,
        producer=PRODUCER,
    )


def moment(at: datetime | None) -> str:
    """A moment as OpenLineage writes it; now when left out."""
    return (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

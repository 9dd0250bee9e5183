"""Column lineage: what is told of each operation, and that what is not told has no influence."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from mesh_assets.lineage import columns as columns_module
from mesh_assets.lineage.columns import Transform, column_lineage, everything

ORDERS = pl.Schema(
    {"id": pl.Int64, "customer": pl.Int64, "amount": pl.Float64, "state": pl.String, "day": pl.Date}
)
CUSTOMERS = pl.Schema({"customer": pl.Int64, "name": pl.String, "state": pl.String})
INPUTS = {"orders": ORDERS, "customers": CUSTOMERS}

Frames = Mapping[str, pl.LazyFrame]


def told(transform: Callable[[Frames], pl.LazyFrame]) -> dict[str, set[str]]:
    """``input.column SUBTYPE`` of each column."""
    found = column_lineage(transform, INPUTS)["result"]
    return {
        name: {f"{source.input}.{source.column} {source.subtype}" for source in sources}
        for name, sources in found.items()
    }


def test_a_transform_of_joins_and_aggregates() -> None:
    def transform(inputs: Frames) -> pl.LazyFrame:
        totals = (
            inputs["orders"]
            .filter(pl.col("state") != "cancelled")
            .group_by("customer")
            .agg(pl.col("amount").sum().alias("total"), pl.len().alias("count"), pl.col("day").max())
        )
        return (
            inputs["customers"]
            .join(totals, on="customer", how="left")
            .select(
                "customer",
                pl.col("name").str.to_uppercase(),
                "total",
                pl.col("count").fill_null(0),
                rank=pl.col("total").rank().over("state"),
                large=pl.when(pl.col("total") > 100).then(pl.col("name")).otherwise(None),
            )
        )

    rows = {
        "customers.customer JOIN",
        "orders.customer JOIN",
        "orders.customer GROUP_BY",
        "orders.state FILTER",
    }
    found = told(transform)
    assert found["customer"] == {"customers.customer IDENTITY"} | rows
    assert found["name"] == {"customers.name TRANSFORMATION"} | rows
    assert found["total"] == {"orders.amount AGGREGATION"} | rows
    assert found["count"] == rows
    assert found["rank"] == {"orders.amount AGGREGATION", "customers.state WINDOW"} | rows
    assert found["large"] == {"customers.name IDENTITY", "orders.amount CONDITIONAL"} | rows


CASES: list[tuple[str, Callable[[Frames], pl.LazyFrame], dict[str, set[str]]]] = [
    (
        "a full join tells the sides apart",
        lambda i: i["customers"].join(i["orders"], on="customer", how="full").select("state", "state_right"),
        {
            "state": {"customers.state IDENTITY", "customers.customer JOIN", "orders.customer JOIN"},
            "state_right": {"orders.state IDENTITY", "customers.customer JOIN", "orders.customer JOIN"},
        },
    ),
    (
        "a coalesced key is of both sides",
        lambda i: (
            i["customers"]
            .join(i["orders"], left_on="customer", right_on="id", how="full", coalesce=True)
            .select("customer")
        ),
        {
            "customer": {
                "customers.customer IDENTITY",
                "orders.id IDENTITY",
                "customers.customer JOIN",
                "orders.id JOIN",
            }
        },
    ),
    (
        "an anti join decides over rows only",
        lambda i: i["customers"].join(i["orders"], on="customer", how="anti").select("name"),
        {"name": {"customers.name IDENTITY", "customers.customer JOIN", "orders.customer JOIN"}},
    ),
    (
        "an as-of join by a column",
        lambda i: (
            i["orders"]
            .with_columns(key=pl.col("id"))
            .join_asof(i["customers"], left_on="key", right_on="customer", by="state", check_sortedness=False)
            .select("name")
        ),
        {
            "name": {
                "customers.name IDENTITY",
                "orders.id JOIN",
                "customers.customer JOIN",
                "orders.state JOIN",
                "customers.state JOIN",
            }
        },
    ),
    (
        "a join on a condition",
        lambda i: i["customers"].join_where(i["orders"], pl.col("customer") < pl.col("id")).select("name"),
        {"name": {"customers.name IDENTITY", "customers.customer FILTER", "orders.id FILTER"}},
    ),
    (
        "a concat is of all its inputs",
        lambda i: pl.concat([i["orders"].select("customer"), i["customers"].select("customer")]),
        {"customer": {"orders.customer IDENTITY", "customers.customer IDENTITY"}},
    ),
    (
        "a unique subset decides over rows",
        lambda i: i["orders"].unique("customer", keep="last").select("amount"),
        {"amount": {"orders.amount IDENTITY", "orders.customer GROUP_BY"}},
    ),
    (
        "sorting and cutting off",
        lambda i: i["orders"].sort("day").head(3).select("id"),
        {"id": {"orders.id IDENTITY", "orders.day SORT"}},
    ),
    (
        "the number of rows is of no column",
        lambda i: i["orders"].select(pl.len()),
        {"len": set()},
    ),
    (
        "values that decide how many there are",
        lambda i: i["orders"].select(pl.col("state").unique()).select(pl.len()),
        {"len": {"orders.state FILTER"}},
    ),
    (
        "windows of a time",
        lambda i: i["orders"].group_by_dynamic("day", every="1mo", group_by="state").agg(pl.sum("amount")),
        {
            "state": {"orders.state IDENTITY", "orders.state GROUP_BY", "orders.day WINDOW"},
            "day": {"orders.day TRANSFORMATION", "orders.state GROUP_BY", "orders.day WINDOW"},
            "amount": {"orders.amount AGGREGATION", "orders.state GROUP_BY", "orders.day WINDOW"},
        },
    ),
    (
        "a struct and back",
        lambda i: (
            i["customers"].select(pl.struct("name", "state").alias("both")).unnest("both").select("name")
        ),
        {"name": {"customers.name TRANSFORMATION", "customers.state TRANSFORMATION"}},
    ),
    (
        "long from wide",
        lambda i: i["orders"].unpivot(["amount"], index="id").select("id", "variable", "value"),
        {"id": {"orders.id IDENTITY"}, "variable": set(), "value": {"orders.amount TRANSFORMATION"}},
    ),
    (
        "wide from long",
        lambda i: i["orders"].pivot(
            "state", on_columns=["a", "b"], index="customer", values="amount", aggregate_function="sum"
        ),
        {
            "customer": {"orders.customer IDENTITY", "orders.customer GROUP_BY"},
            "a": {"orders.amount AGGREGATION", "orders.state FILTER", "orders.customer GROUP_BY"},
            "b": {"orders.amount AGGREGATION", "orders.state FILTER", "orders.customer GROUP_BY"},
        },
    ),
    (
        "SQL is a plan like any other",
        lambda i: i["orders"].sql("select state, max(amount) as top from self where id > 3 group by state"),
        {
            "state": {"orders.state IDENTITY", "orders.state GROUP_BY", "orders.id FILTER"},
            "top": {"orders.amount AGGREGATION", "orders.state GROUP_BY", "orders.id FILTER"},
        },
    ),
    (
        "an own lookup table is no input",
        lambda i: (
            i["orders"].join(pl.LazyFrame({"state": ["a"], "label": ["A"]}), on="state").select("label")
        ),
        {"label": {"orders.state JOIN"}},
    ),
]


@pytest.mark.parametrize(
    ("transform", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_operations(transform: Callable[[Frames], pl.LazyFrame], expected: dict[str, set[str]]) -> None:
    assert told(transform) == expected


def test_a_hash_and_a_count_mask_what_they_are_of() -> None:
    found = column_lineage(
        lambda i: (
            i["customers"].group_by("state").agg(pl.col("name").hash().first(), pl.col("customer").n_unique())
        ),
        INPUTS,
    )["result"]
    masked = {name: {s.column for s in sources if s.masking} for name, sources in found.items()}
    assert masked == {"state": set(), "name": {"name"}, "customer": {"customer"}}


def test_several_tables() -> None:
    found = column_lineage(
        lambda i: {"a": i["orders"].select("id"), "b": i["customers"].select("name")}, INPUTS
    )
    assert {table: list(columns) for table, columns in found.items()} == {"a": ["id"], "b": ["name"]}


def _backwards(value: str) -> str:
    return "".join(reversed(value))


def test_python_code_is_taken_to_use_everything() -> None:
    found = told(lambda i: i["customers"].map_batches(lambda frame: frame).select("name"))
    assert {"customers.name TRANSFORMATION", "customers.state TRANSFORMATION"} <= found["name"]
    assert "orders.amount CONDITIONAL" in found["name"]
    element = told(
        lambda i: i["customers"].select(pl.col("name").map_elements(_backwards, return_dtype=pl.String))
    )
    assert "orders.amount CONDITIONAL" in element["name"]


def test_values_computed_while_planning_are_followed() -> None:
    """They are constants in the plan; which input they come from is known all the same."""

    def transform(inputs: Frames) -> pl.LazyFrame:
        last = inputs["orders"].select(pl.col("id").max()).collect().item()
        inputs["customers"].select("name").collect()
        return (
            inputs["customers"].filter(pl.col("customer") > pl.lit(last)).select("state", "name", k=pl.lit(1))
        )

    found = told(transform)
    assert "orders.id FILTER" in found["state"] or "orders.id CONDITIONAL" in found["state"]
    assert "customers.name CONDITIONAL" in found["k"]
    eager = told(lambda i: i["orders"].collect().lazy().select("amount"))
    assert "orders.amount TRANSFORMATION" in eager["amount"]


def test_what_a_transform_raises_is_passed_on() -> None:
    def transform(inputs: Frames) -> pl.LazyFrame:
        return inputs["nobody"]

    with pytest.raises(KeyError, match="nobody"):
        column_lineage(transform, INPUTS)


def test_a_polars_that_shows_no_plan_gives_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(frame: pl.LazyFrame) -> None:
        raise AttributeError("visit")

    monkeypatch.setattr(columns_module, "_traverser", refuse)
    found = column_lineage(lambda i: i["customers"].select("name"), INPUTS)["result"]
    assert {(source.input, source.column) for source in found["name"]} == {
        (source.input, source.column) for source in everything(INPUTS, ["name"])["name"]
    }


def test_a_deep_plan_is_no_trouble() -> None:
    def transform(inputs: Frames) -> pl.LazyFrame:
        frame = inputs["orders"]
        for number in range(300):
            frame = frame.filter(pl.col("id") != number)
        return frame.select("amount")

    assert told(transform) == {"amount": {"orders.amount IDENTITY", "orders.id FILTER"}}


# -- what is not told has no influence -------------------------------------------------------------

SMALL = {"left": ["a", "b", "c"], "right": ["a", "d"]}
VALUES = st.one_of(st.none(), st.integers(0, 3))


def _looked_up(value: int) -> int:
    return {0: 7, 1: 5}.get(value, 3)


def _expression(data: DataObject, names: list[str]) -> pl.Expr:
    """A value per row."""
    one, two, three = (pl.col(data.draw(st.sampled_from(names))) for _ in range(3))
    makers: list[Callable[[], pl.Expr]] = [
        lambda: one + two,
        lambda: pl.when(one > 1).then(two).otherwise(three),
        lambda: one.shift(1).fill_null(0),
        lambda: one.cum_sum().over(two),
        lambda: one.sum().over(two, order_by=three),
        lambda: one.rank("ordinal").cast(pl.Int64),
        lambda: pl.coalesce(one, two),
        lambda: one.is_in([1, 2]).cast(pl.Int64),
        lambda: one.sort_by(two, three),
        lambda: one.max() + two,
        lambda: pl.struct(one.alias("x"), two.alias("y")).struct.field("x"),
        lambda: one.filter(two > 0).first(),
        lambda: one.sort_by(two, three).last(),
        lambda: pl.len().cast(pl.Int64) + one,
        lambda: one.n_unique().cast(pl.Int64).over(two),
        lambda: one.is_duplicated().cast(pl.Int64),
        lambda: pl.max_horizontal(one, two),
        lambda: pl.concat_list(one, two).list.sum(),
        lambda: one.forward_fill(),
        lambda: one.gather_every(2).len().cast(pl.Int64) + two.null_count().cast(pl.Int64),
        lambda: one.replace_strict({1: 5}, default=two),
        lambda: one.map_elements(_looked_up, return_dtype=pl.Int64, skip_nulls=True) + two,
        lambda: one.reverse(),
        lambda: one.hash().cast(pl.Int64, strict=False).is_null().cast(pl.Int64),
        lambda: one.arg_max().cast(pl.Int64) + two.fill_null(one),
    ]
    return data.draw(st.sampled_from(makers))()


def _step(data: DataObject, frame: pl.LazyFrame, other: pl.LazyFrame) -> pl.LazyFrame:
    """One more operation on a frame of integer columns."""
    names = frame.collect_schema().names()
    theirs = other.collect_schema().names()
    one, two = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    free = next(name for name in "uvwxyz" if name not in names) if len(names) < 6 else names[0]
    shared = [name for name in names if name in theirs]
    on = data.draw(st.sampled_from(shared)) if shared else None
    makers: list[Callable[[], pl.LazyFrame]] = [
        lambda: frame.with_columns(_expression(data, names).alias(free)),
        lambda: frame.select(sorted({one, two})),
        lambda: frame.rename({one: "q"}) if "q" not in names else frame,
        lambda: frame.filter(pl.col(one) > pl.col(two)),
        lambda: frame.filter(pl.col(one) != 1),
        lambda: frame.sort(one, two, maintain_order=True),
        lambda: frame.sort(pl.col(one) + pl.col(two), maintain_order=True),
        lambda: frame.unique([one], keep="first", maintain_order=True),
        lambda: frame.unique(keep="last", maintain_order=True),
        lambda: frame.head(3),
        lambda: frame.tail(2),
        lambda: frame.slice(1, 3),
        lambda: frame.reverse(),
        lambda: frame.drop_nulls([one]),
        lambda: frame.with_row_index(free).with_columns(pl.col(free).cast(pl.Int64)),
        lambda: frame.group_by(one, maintain_order=True).agg(
            pl.len().cast(pl.Int64).alias("n"),
            *([pl.col(two).sum().alias("s"), pl.col(two).first().alias("f")] if "s" not in names else []),
        ),
        lambda: frame.group_by((pl.col(one) % 2).alias("g"), maintain_order=True).agg(
            pl.col(two).filter(pl.col(one) > 1).max().alias("m")
        ),
        lambda: frame.select(pl.col(one).unique(maintain_order=True)),
        lambda: frame.select(pl.len().cast(pl.Int64)),
        lambda: frame.select(pl.col(one).filter(pl.col(two) > 0)),
        lambda: frame.select(pl.all().sum()),
        lambda: frame.select(pl.col(one).implode()).explode(one, empty_as_null=False),
        lambda: frame.unpivot([one], index=[two] if two != one else None).select("value"),
        lambda: pl.concat([frame.select(one), other.select(pl.col(theirs[0]).alias(one))]),
        lambda: frame.map_batches(lambda batch: batch.with_columns(pl.all().sum())),
        lambda: frame.collect().lazy(),
        lambda: frame.filter(
            pl.col(one) >= pl.lit(other.select(pl.col(theirs[0]).max()).collect().item(), pl.Int64)
        ),
        lambda: frame.join(other, how="cross", maintain_order="left_right").head(20),
        lambda: frame.join(other, left_on=one, right_on=theirs[-1], how="full", maintain_order="left_right"),
        lambda: frame.join(other, left_on=one, right_on=theirs[0], how="semi", maintain_order="left"),
        lambda: frame.join(other, left_on=one, right_on=theirs[0], how="anti", maintain_order="left"),
        *(
            [
                lambda how=how, coalesce=coalesce: frame.join(  # type: ignore[misc]
                    other, on=on, how=how, coalesce=coalesce, maintain_order="left_right"
                )
                for how in ("inner", "left", "full")
                for coalesce in (True, False)
            ]
            if on
            else []
        ),
    ]
    return data.draw(st.sampled_from(makers))()


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@given(st.data())
def test_what_is_not_told_has_no_influence(data: DataObject) -> None:
    """Other values in a column that an output column is not said to use leave that column as it is."""
    held = {
        name: pl.DataFrame(
            {column: data.draw(st.lists(VALUES, min_size=5, max_size=5)) for column in names},
            schema=dict.fromkeys(names, pl.Int64),
        )
        for name, names in SMALL.items()
    }
    others = {
        (name, column): pl.Series(column, data.draw(st.lists(VALUES, min_size=5, max_size=5)), pl.Int64)
        for name, names in SMALL.items()
        for column in names
    }
    count = data.draw(st.integers(1, 4))
    drawn: list[object] = []

    class Replayed:
        """Draws once, and gives the same again whenever the transform is called again."""

        def __init__(self) -> None:
            self.place = 0

        def draw(self, strategy: st.SearchStrategy[object]) -> object:
            if self.place == len(drawn):
                drawn.append(data.draw(strategy))
            self.place += 1
            return drawn[self.place - 1]

    def transform(inputs: Frames) -> pl.LazyFrame:
        again = Numbered(Replayed())
        frame, other = inputs["left"], inputs["right"]
        for _ in range(count):
            frame = _step(again, frame, other)  # type: ignore[arg-type]
        return frame

    made = _made(transform, held)
    if made is None:
        return
    told = column_lineage(transform, {name: frame.schema for name, frame in held.items()})["result"]
    assert list(told) == made.columns
    for (name, column), other in others.items():
        rows = held | {name: held[name].with_columns(other)}
        changed = _made(transform, rows)
        if changed is None:
            continue
        for output in made.columns:
            used = {(source.input, source.column) for source in told[output]}
            if (name, column) not in used and not changed[output].equals(made[output]):
                # A join does not always keep its order, though asked to: then all that can come is compared.
                before, after = _outcomes(transform, held, output), _outcomes(transform, rows, output)
                assert before & after, (output, name, column)


class Numbered:
    """Chooses by number, so that the choice is the same whatever is to be chosen from."""

    def __init__(self, draws: object) -> None:
        self._draws = draws

    def draw(self, strategy: st.SearchStrategy[object]) -> object:
        elements = strategy.elements  # type: ignore[attr-defined]
        number = self._draws.draw(st.integers(0, 2**16))  # type: ignore[attr-defined]
        return elements[number % len(elements)]


def _outcomes(transform: Transform, held: Mapping[str, pl.DataFrame], output: str) -> set[str]:
    made = [_made(transform, held) for _ in range(60)]
    return {str(one[output].to_list()) for one in made if one is not None}


def _made(transform: Transform, held: Mapping[str, pl.DataFrame]) -> pl.DataFrame | None:
    """What the transform makes of these rows; None if it cannot."""
    try:
        made = transform({name: frame.lazy() for name, frame in held.items()})
        assert isinstance(made, pl.LazyFrame)
        return made.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None

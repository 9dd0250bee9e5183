"""The verdict on a mesh: failures at once, and what may still come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh_assets.local.sight import ProductSight, Sight, SourceSight
from mesh_assets.local.verdict import GRACE_SECONDS, LAG_SECONDS, Patience, Verdict, judge

WELL = Sight(
    at=1.0,
    sources=(SourceSight("sales.app", 0.4, 1 << 20, 12.0, captured=True),),
    products=(ProductSight("sales.orders", 1_000, 3, "2026-01-02T03:04:05+00:00"),),
    locations={"sales": "loaded", "enterprise": "loaded"},
    web=True,
)


def sight(**changes: Any) -> Sight:
    return replace(WELL, **changes)


def source(**changes: Any) -> Sight:
    return sight(sources=(replace(WELL.sources[0], **changes),))


def product(**changes: Any) -> Sight:
    return sight(products=(replace(WELL.products[0], **changes),))


def test_a_mesh_that_works_has_no_problems() -> None:
    assert judge(WELL) == Verdict()
    assert judge(WELL).problems == ()


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (source(lag_seconds=None, captured=False), "source sales.app was not captured"),
        (source(lag_seconds=17.2), "source sales.app lags by 17 s"),
        (
            source(lag_seconds=None, problem="sales.app did not answer within 3 s", overdue=True),
            "source sales.app: sales.app did not answer within 3 s",
        ),
        (product(version=0), "product sales.orders has no version"),
        (sight(locations={"sales": "loading"}), "code location sales: loading"),
        (sight(locations={}), "Dagster knows of no code location"),
        (sight(daemons=("SENSOR",)), "Dagster's SENSOR daemon is not healthy"),
        (sight(web=False, daemons=("no answer",), locations={}), "Dagster's web server does not answer"),
    ],
)
def test_what_may_come_is_awaited(seen: Sight, text: str) -> None:
    assert judge(seen) == Verdict(awaited=(text,))
    assert judge(seen).problems == (text,)


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (sight(failed_runs=("sales_capture 4f2a",)), "run failed: sales_capture 4f2a"),
        (
            source(problem="its replication slot was lost"),
            "source sales.app: its replication slot was lost",
        ),
        (
            product(version=0, problem="not derived: no such column"),
            "product sales.orders: not derived: no such column",
        ),
        (sight(locations={"sales": "SyntaxError: …"}), "code location sales: SyntaxError: …"),
    ],
)
def test_what_no_waiting_mends_has_failed(seen: Sight, text: str) -> None:
    assert judge(seen) == Verdict(failures=(text,))


def test_failures_are_named_before_what_is_awaited() -> None:
    seen = replace(product(version=0), failed_runs=("sales_capture 4f2a",))
    assert judge(seen).problems == (
        "run failed: sales_capture 4f2a",
        "product sales.orders has no version",
    )


def test_a_source_may_be_behind_for_some_seconds() -> None:
    assert judge(source(lag_seconds=LAG_SECONDS)) == Verdict()
    assert judge(source(lag_seconds=LAG_SECONDS + 0.1)).awaited


def test_before_anything_was_seen_nothing_works() -> None:
    assert judge(Sight()).problems == ("Dagster's web server does not answer",)


def test_a_process_that_ended_by_itself_is_a_failure() -> None:
    assert judge(product(version=0), ["daemon ended with exit code 1"]) == Verdict(
        failures=("daemon ended with exit code 1",), awaited=("product sales.orders has no version",)
    )


AWAITED = Verdict(awaited=("source sales.app lags by 17 s",))
FAILED = Verdict(failures=("run failed: sales_capture 4f2a",), awaited=AWAITED.awaited)


def test_a_mesh_stays_up_for_its_time_whatever_happens() -> None:
    said: list[str] = []
    for verdict in (Verdict(), AWAITED, FAILED):
        assert Patience(5, said.append).stays(4.9, verdict)
        assert Patience(None, said.append).stays(1e6, verdict)
    assert said == []


def test_a_mesh_is_judged_when_its_time_is_over_and_nothing_is_on_its_way() -> None:
    said: list[str] = []
    assert not Patience(5, said.append).stays(5, Verdict())
    assert not Patience(5, said.append).stays(5, FAILED)
    assert said == []


def test_what_is_on_its_way_is_named_and_waited_for_until_it_has_come() -> None:
    said: list[str] = []
    patience = Patience(5, said.append)
    assert patience.stays(5, AWAITED)
    assert patience.stays(16, AWAITED)
    assert not patience.stays(17, Verdict())
    waiting, come = said
    assert waiting.endswith("waiting up to 60 s more for: source sales.app lags by 17 s")
    assert come == "all of it came, 12 s later"


def test_a_failure_meanwhile_ends_the_waiting() -> None:
    said: list[str] = []
    patience = Patience(5, said.append)
    assert patience.stays(5, AWAITED)
    assert not patience.stays(6, FAILED)
    assert len(said) == 1


def test_waiting_has_an_end() -> None:
    patience = Patience(5, print)
    assert patience.stays(5 + GRACE_SECONDS - 0.1, AWAITED)
    assert not patience.stays(5 + GRACE_SECONDS, AWAITED)

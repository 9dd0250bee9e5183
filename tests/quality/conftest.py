"""Fixtures of the quality tests: Great Expectations itself, in one child for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mesh_assets.quality.result import configuration
from mesh_assets.quality.rule import Expectation, Rule
from tests.waiting import PATIENCE_SECONDS


class GreatExpectations:
    """The child; its import costs seconds, so it is started by the first question."""

    def __init__(self, folder: Path) -> None:
        self._rows = folder / "rows.parquet"
        self._log = folder / "great_expectations.log"
        self._child: subprocess.Popen[str] | None = None

    def validate(self, frame: pl.DataFrame, expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
        if self._child is None:
            with self._log.open("w") as log:
                self._child = subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("great_expectations_child.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=os.environ | {"GX_ANALYTICS_ENABLED": "false"},
                )
        frame.write_parquet(self._rows)
        asked = [configuration(Rule("t.r", "t", (), expectation)) for expectation in expectations]
        plain = [{name: one[name] for name in ("type", "kwargs", "severity")} for one in asked]
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"rows": str(self._rows), "expectations": plain}) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, self._log.read_text()
        results: list[dict[str, Any]] = json.loads(answer)
        return results

    def close(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            self._child.stdin.close()
            self._child.wait(timeout=PATIENCE_SECONDS)
            self._child.stdout.close()


@pytest.fixture(scope="session")
def great_expectations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GreatExpectations]:
    """Great Expectations' own engine for data frames."""
    child = GreatExpectations(tmp_path_factory.mktemp("great_expectations"))
    try:
        yield child
    finally:
        child.close()

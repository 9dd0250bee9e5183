"""A transaction larger than memory lands in parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import workload
from tests.ingest.large_transaction import LARGE_COUNT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of memory")
def test_a_transaction_takes_the_memory_of_a_batch_however_large(database_url: str, tmp_path: Path) -> None:
    workload.create(database_url)
    done = subprocess.run(
        [sys.executable, "-m", "tests.ingest.large_transaction", database_url, str(tmp_path / "lake")],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["transaction_bytes"] > 250e6
    assert report["row_count"] == LARGE_COUNT
    assert report["batch_count"] > 4
    assert report["growth_bytes"] < report["transaction_bytes"] / 5
    assert report["differing"] == []

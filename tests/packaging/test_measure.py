"""Benchmarks see what processes use, also part by part."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.measure import Sampler, process_tree, tree_seconds

_HELD_BYTES = 64 << 20
_HOLDER = f"""
held = bytearray(b"x") * {_HELD_BYTES}
print("held", flush=True)
input()
del held
print("free", flush=True)
input()
"""
_BURNER = "import time\nwhile time.process_time() < 0.5: pass"


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds much memory until it gets a line."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_each_part_has_a_peak_of_its_own(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    # Beyond its first look it only looks when it is asked.
    with Sampler(memory={"holder": process_tree(holder.pid)}, memory_seconds=3600) as sampler:
        full = sampler.lap_bytes("holder")
        holder.stdin.write("\n")
        holder.stdin.flush()
        holder.stdout.readline()
        # Its first look may have fallen into this part.
        sampler.lap_bytes("holder")
        assert sampler.lap_bytes("holder") < full - _HELD_BYTES // 2
    assert full > _HELD_BYTES
    assert sampler.peak_bytes("holder") >= full


def test_cpu_time_of_descendants_counts_also_when_they_have_ended() -> None:
    before = tree_seconds()
    subprocess.run([sys.executable, "-c", _BURNER], check=True)
    assert tree_seconds() - before > 0.4

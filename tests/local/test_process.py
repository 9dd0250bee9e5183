"""Children: forked, watched, and gone when their supervisor is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.waiting import until

# What forks is a process of its own, as in operation: this one has threads.
SUPERVISOR = """
import json, os, signal, sys, time
from pathlib import Path
from mesh_assets.local.process import Child, Guardian, await_ends

folder = Path(sys.argv[1])
guardian = Guardian(lambda: (folder / "finished").touch(), folder / "guardian.log")

def sleeping():
    time.sleep(600)

def refusing():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "refuses").touch()
    time.sleep(600)

children = [Child(f"child-{n}", sleeping, folder / f"{n}.log") for n in range(3)]
children.append(Child("ending", lambda: 7, folder / "ending.log"))
for child in children:
    child.start(guardian.group)
(folder / "pids").write_text(" ".join(str(child.pid) for child in children[:3]) + f" {guardian.pid}")
while not children[3].reap():
    time.sleep(0.01)
(folder / "code").write_text(f"{children[3].exit_code} {children[3].backoff_seconds}")
while not children[3].restart_when_due(guardian.group):
    time.sleep(0.01)
(folder / "ready").touch()
if sys.argv[2] == "wait":
    time.sleep(600)
for child in children:
    child.stop(5)
last = Child("last", refusing, folder / "last.log")
last.start(guardian.group)
while not (folder / "refuses").exists():
    time.sleep(0.01)
last.signal(signal.SIGTERM)
late = [await_ends([last], 0.1, kill=False), last.running, await_ends([last], 0.1), last.running]
(folder / "late").write_text(json.dumps(late))
guardian.dismiss()
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(folder: Path, what: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder), what])


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, "wait") as supervisor:
        until((tmp_path / "ready").exists)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(alive(pid) for pid in pids)
        os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids))
    assert (tmp_path / "finished").exists()


def test_children_end_with_their_supervisor_and_restarts_wait(tmp_path: Path) -> None:
    with start(tmp_path, "end") as supervisor:
        assert supervisor.wait(120) == 0
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(alive(pid) for pid in pids)
    assert not (tmp_path / "finished").exists()
    code, backoff_seconds = (tmp_path / "code").read_text().split()
    assert (int(code), float(backoff_seconds)) == (7, 1.0)
    # Who does not end in time is named, and killed only where that is asked for.
    assert json.loads((tmp_path / "late").read_text()) == [["last"], True, ["last"], False]

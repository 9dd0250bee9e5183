"""Memory and CPU of groups of processes, sampled from outside while they work."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

import psutil
import psycopg

# Reading one process's PSS walks its page tables: some milliseconds per gigabyte.
_MEMORY_SECONDS = 0.15
_CPU_SECONDS = 0.03

ProcessSource = Callable[[], Iterable[psutil.Process]]


def process_tree(pid: int) -> ProcessSource:
    """The process and all that descend from it, as they are at each call."""

    def processes() -> list[psutil.Process]:
        try:
            root = psutil.Process(pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    return processes


def walsender(url: str, slot: str) -> ProcessSource:
    """The server process that streams from ``slot``, once there is one."""
    found: list[psutil.Process] = []
    connection = psycopg.connect(url, autocommit=True)

    def processes() -> list[psutil.Process]:
        if not found:
            row = connection.execute(
                "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (slot,)
            ).fetchone()
            if row and row[0] is not None:
                found.append(psutil.Process(row[0]))
                connection.close()
        return found

    return processes


def proportional_bytes(process: psutil.Process) -> int:
    """A process's proportional set size; where the platform has none, its unique set size.

    A process that is gone, or that another account owns, counts as nothing.
    """
    try:
        info = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(info, "pss", info.uss))


def total_bytes(processes: Iterable[psutil.Process]) -> int:
    """Proportional set size summed over processes: pages that they share count once."""
    return sum(proportional_bytes(process) for process in processes)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far; 0 if it is gone."""
    try:
        times = process.cpu_times()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return float(times.user + times.system)


def tree_seconds() -> float:
    """CPU time so far of this process and of all that descend from it, those that ended included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = sum(map(cpu_seconds, process_tree(os.getpid())()))
    return running + ended.ru_utime + ended.ru_stime


@dataclass
class _Usage:
    """What was seen of one group."""

    peak_bytes: int = 0
    lap_bytes: int = 0
    first_seconds: dict[int, float] = field(default_factory=dict)
    last_seconds: dict[int, float] = field(default_factory=dict)


class Sampler:
    """Samples groups of processes in a thread of its own until it is closed.

    Args:
        memory: groups whose peak memory is wanted; the total's peak is kept, too.
        cpu: groups whose CPU time is wanted. A process first seen while sampling counts from the
            time it had used then, so CPU is exact to a sampling interval.
        seconds: from one look at CPU times to the next.
        memory_seconds: from one look at memory to the next; longer where it would disturb.
    """

    def __init__(
        self,
        *,
        memory: Mapping[str, ProcessSource] | None = None,
        cpu: Mapping[str, ProcessSource] | None = None,
        seconds: float = _CPU_SECONDS,
        memory_seconds: float = _MEMORY_SECONDS,
    ) -> None:
        self._memory, self._cpu = dict(memory or {}), dict(cpu or {})
        self._usage = {name: _Usage() for name in (*self._memory, *self._cpu)}
        self._seconds, self._memory_seconds = seconds, memory_seconds
        self._began = time.time()
        self._failure: Exception | None = None
        self._total_peak = 0
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def peak_bytes(self, group: str = "") -> int:
        """The largest memory seen of a group, or of all groups together."""
        return self._usage[group].peak_bytes if group else self._total_peak

    def lap_bytes(self, group: str) -> int:
        """The largest memory seen of a group since the last call; a short lap is looked at now."""
        self._sample_memory()
        with self._looking:
            usage = self._usage[group]
            largest, usage.lap_bytes = usage.lap_bytes, 0
        return largest

    def cpu_seconds(self, group: str) -> float:
        """CPU time that the group used while it was watched."""
        usage = self._usage[group]
        return sum(last - usage.first_seconds[pid] for pid, last in usage.last_seconds.items())

    def _work(self) -> None:
        try:
            self._sample()
        except Exception as error:  # noqa: BLE001 - raised where the sampler is closed
            self._failure = error

    def _sample(self) -> None:
        next_memory = time.monotonic()
        while True:
            stopping = self._stop.is_set()
            self._sample_cpu()
            if self._memory and (stopping or time.monotonic() >= next_memory):
                self._sample_memory()
                next_memory = time.monotonic() + self._memory_seconds
            if stopping:
                return
            self._stop.wait(self._seconds if self._cpu else self._memory_seconds)

    def _sample_cpu(self) -> None:
        for name, source in self._cpu.items():
            usage = self._usage[name]
            for process in source():
                if seconds := cpu_seconds(process):
                    if process.pid not in usage.first_seconds:
                        usage.first_seconds[process.pid] = self._used_before(process, seconds)
                    usage.last_seconds[process.pid] = seconds

    def _used_before(self, process: psutil.Process, seconds: float) -> float:
        """Of a process's CPU time, what it had used before the sampler began."""
        try:
            return 0.0 if process.create_time() > self._began else seconds
        except psutil.NoSuchProcess:
            return seconds

    def _sample_memory(self) -> None:
        with self._looking:
            sizes = {name: total_bytes(source()) for name, source in self._memory.items()}
            for name, size in sizes.items():
                usage = self._usage[name]
                usage.peak_bytes = max(usage.peak_bytes, size)
                usage.lap_bytes = max(usage.lap_bytes, size)
            self._total_peak = max(self._total_peak, sum(sizes.values()))

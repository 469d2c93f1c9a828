"""What this machine's kernel takes by itself, for the part of a measurement that no code of ours can make shorter.

Without it a figure from a virtual machine, where to wake up a thread on another CPU may take 40 us, says little about a figure
from elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expedited.bench.scratch import Crowd
from expedited.teardown.linux import realtime
from expedited.teardown.reap import STRIKER_PRIORITY

__all__ = ["Echo", "bare_strike_us", "echo"]

_ECHO = Path(__file__).with_name("echo.py")


class Echo:
    """A process that is woken up on another CPU, and wakes us up."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._pid = process.pid
        self._to, self._from = process.stdin.fileno(), process.stdout.fileno()

    def round_trips_us(self, count: int) -> list[float]:
        """Microseconds that each byte took, there and back."""
        os.sched_setaffinity(self._pid, os.sched_getaffinity(0) - {_current_cpu()})
        took = []
        for _ in range(count):
            began = time.perf_counter_ns()
            os.write(self._to, b"+")
            os.read(self._from, 1)
            took.append((time.perf_counter_ns() - began) / 1000)
        return took


@contextmanager
def echo(priority: int) -> Iterator[Echo | None]:
    """An :class:`Echo` of this SCHED_RR priority; None where there is no other CPU for it."""
    if len(os.sched_getaffinity(0)) == 1:
        yield None
        return
    command = [sys.executable, "-I", "-S", str(_ECHO), str(priority)]
    with subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Echo(process)
        finally:
            process.kill()


def bare_strike_us(crowd: Crowd) -> float:
    """Kill a crowd by the calls that no strike without ``cgroup.kill`` can do without: list, open, list again, signal.

    Returns:
        Microseconds that they took.
    """
    (directory, *_) = set(crowd.cgroup.directories.values())
    procs = f"{directory}/cgroup.procs"
    with realtime(STRIKER_PRIORITY):
        began = time.perf_counter_ns()
        pidfds = [os.pidfd_open(pid) for pid in _list(procs)]
        _list(procs)
        for pidfd in pidfds:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ended = time.perf_counter_ns()
    for pidfd in pidfds:
        os.close(pidfd)
    return (ended - began) / 1000


def _list(procs: str) -> list[int]:
    descriptor = os.open(procs, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = iter(lambda: os.read(descriptor, 65536), b"")
        return [int(pid) for pid in b"".join(parts).split()]
    finally:
        os.close(descriptor)


def _current_cpu() -> int:
    """Field 39 of proc_pid_stat(5)."""
    return int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[36])

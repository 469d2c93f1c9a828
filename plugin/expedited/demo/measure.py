"""How long a stop takes: one process of its own that does nothing but look.

Run as ``python -m expedited.demo.measure``, so that it starts fast, shares no interpreter with what causes the stop, and
can have a priority of its own: beside busy loops an ordinary process would look too seldom. Both sides of the comparison
are measured by it, with the same polling. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["BACK_SHARE", "Measured", "Meter"]

#: *Memory back* is when this share of the cgroup's anonymous memory is free.
BACK_SHARE = 0.95

_POLL_SECONDS = 0.001
_PRIORITY = 1
# The line of memory.stat that has the anonymous memory, descendants' included, by cgroup version
_ANON_LINE = {1: b"total_rss ", 2: b"anon "}


@dataclass(frozen=True, slots=True)
class Measured:
    """What one stop took.

    Attributes:
        anon_bytes: The cgroup's anonymous memory before it.
        memory_back_at: When 95% of it was free, by CLOCK_MONOTONIC (:func:`time.monotonic`); None: not yet.
        gone_at: When the cgroup was empty or removed; None: not yet.
    """

    anon_bytes: int
    memory_back_at: float | None
    gone_at: float | None


class Meter:
    """Watches one cgroup from before the stop until it is gone; a context manager.

    Args:
        memory_directory: The cgroup's directory in the hierarchy that has the memory controller.
        version: Of that hierarchy, 1 or 2.
    """

    def __init__(self, memory_directory: Path, version: int) -> None:
        command = [sys.executable, "-m", "expedited.demo.measure", str(memory_directory), str(version)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.anon_bytes = 0

    def __enter__(self) -> Meter:
        self.anon_bytes = int(self._line()["anon_bytes"] or 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self, timeout_seconds: float) -> Measured:
        """Until the cgroup is gone, or the time is over."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        if not select.select([self._process.stdout], [], [], timeout_seconds)[0]:
            self._process.stdin.write("enough\n")
            self._process.stdin.flush()
        answer = self._line()
        return Measured(self.anon_bytes, answer["memory_back_at"], answer["gone_at"])

    def _line(self) -> dict[str, float | None]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the measuring process ended")
        answer: dict[str, float | None] = json.loads(line)
        return answer


def _measure(directory: str, version: int) -> None:
    memory = os.open(f"{directory}/memory.stat", os.O_RDONLY)
    processes = f"{directory}/cgroup.procs"
    label = b"\n" + _ANON_LINE[version]
    anon = _anon_bytes(memory, label)
    _raise_priority()
    print(json.dumps({"anon_bytes": anon}), flush=True)
    back_at = gone_at = None
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while gone_at is None and not poller.poll(0):
        if back_at is None and _anon_bytes(memory, label) <= (1 - BACK_SHARE) * anon:
            back_at = time.monotonic()
        if _is_empty(processes):
            gone_at = time.monotonic()
            back_at = back_at or gone_at
        time.sleep(_POLL_SECONDS)
    print(json.dumps({"memory_back_at": back_at, "gone_at": gone_at}), flush=True)


def _anon_bytes(descriptor: int, label: bytes) -> int:
    try:
        text = b"\n" + os.pread(descriptor, 16384, 0)
    except OSError:  # ENODEV: the cgroup was removed
        return 0
    start = text.index(label) + len(label)
    return int(text[start : text.index(b"\n", start)])


def _is_empty(processes: str) -> bool:
    # Opened anew each time: version 1 makes the list when the file is opened, and a descriptor that is read again and
    # again keeps what it was then (kernel/cgroup/cgroup-v1.c, cgroup_pidlist_start).
    try:
        descriptor = os.open(processes, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return not os.read(descriptor, 64)
    except OSError:  # ENODEV: removed meanwhile
        return True
    finally:
        os.close(descriptor)


def _raise_priority() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError:
            print("measuring at normal priority: figures under load are coarse", file=sys.stderr)


if __name__ == "__main__":
    _measure(sys.argv[1], int(sys.argv[2]))

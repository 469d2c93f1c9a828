"""The victims: ``crowd.py PROCESSES BYTES CGROUP-DIRECTORY...`` joins the cgroup, forks, and each touches its memory.

Run by its path, without site-packages, so that it starts fast and small. Each process writes one ``+`` when it is ready.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys


def main(processes: int, size_bytes: int, directories: list[str]) -> None:
    """Never returns; what prevents it is printed in place of the ``+``."""
    # Whoever measures may be real-time; what a container runs is not, and could not even join some cgroups
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    for directory in directories:
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write(str(os.getpid()))
    for _ in range(processes - 1):
        if os.fork() == 0:
            break
    memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if size_bytes else b""
    for at in range(0, size_bytes, mmap.PAGESIZE):
        memory[at] = 1  # type: ignore[index]
    os.write(1, b"+")
    while True:
        signal.pause()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    except OSError as problem:
        os.write(1, f"{problem.strerror}".encode())

"""Small files in /proc, read with one call: those of a process may vanish at any moment."""

from __future__ import annotations

import os

__all__ = ["cpus_are_taken", "read_proc"]

_READ_AT_MOST = 4096
_LOADAVG = "/proc/loadavg"


def read_proc(pid: int, name: str) -> bytes:
    """The first 4 KiB of /proc/PID/NAME; empty where there is no such process any more, or it is not ours to read."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _READ_AT_MOST)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def cpus_are_taken() -> bool:
    """Whether more threads can run now than there are CPUs, this one counted.

    Of the moment, unlike the load averages and pressure (PSI), which tell of the last seconds; False where nobody tells.
    """
    try:
        with open(_LOADAVG, "rb", buffering=0) as file:
            # Of "0.20 0.18 0.12 3/80 11206" the 3: threads that run or wait for a CPU
            runnable = int(file.read().split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return runnable > (os.cpu_count() or 1)

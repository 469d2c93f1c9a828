"""Small files of other processes in /proc, read with one call: their owners may end at any moment."""

from __future__ import annotations

import os

__all__ = ["read_proc"]

_READ_AT_MOST = 4096


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

"""memory.stat of either version of the memory controller: the few lines that are wanted, as a kill waits for the answer."""

from __future__ import annotations

from expedited.teardown.report import Memory

__all__ = ["anon_bytes", "memory"]

# Version 1 counts descendants in total_*
_ANON = {1: b"total_rss", 2: b"anon"}
_CACHE = {1: b"total_cache", 2: b"file"}
_SHMEM = {1: b"total_shmem", 2: b"shmem"}


def anon_bytes(stat: bytes, version: int) -> int:
    """The anonymous memory, descendants' included; 0 where the text does not say, as of a cgroup that was removed."""
    return _line(stat, _ANON[version])


def memory(stat: bytes, version: int, swap_bytes: int = 0) -> Memory:
    """All that a report has; version 2 tells the swapped bytes elsewhere."""
    shmem = _line(stat, _SHMEM[version])
    swap = _line(stat, b"total_swap") if version == 1 else swap_bytes
    return Memory(anon_bytes(stat, version), max(0, _line(stat, _CACHE[version]) - shmem), shmem, swap)


def _line(stat: bytes, name: bytes) -> int:
    label = b"\n" + name + b" "
    at = 0 if stat.startswith(label[1:]) else stat.find(label) + 1
    if not stat.startswith(label[1:], at):
        return 0
    at += len(name) + 1
    return int(stat[at : stat.index(b"\n", at)])

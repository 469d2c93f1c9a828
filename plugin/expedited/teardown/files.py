"""The small files of the cgroup file systems: each is read whole and written by one call, and may be gone at any moment."""

from __future__ import annotations

import os

__all__ = ["inode", "read", "try_write", "write"]

_READ_AT_ONCE = 65536
_PAGE_BYTES = 4096


def read(path: str) -> bytes:
    """All of it.

    Raises:
        OSError: it can't be opened, or its cgroup was removed meanwhile (ENODEV).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, _READ_AT_ONCE)
        while len(text) % _PAGE_BYTES == 0 and text:  # a full buffer: there may be more
            more = os.read(descriptor, _READ_AT_ONCE)
            if not more:
                break
            text += more
        return text
    finally:
        os.close(descriptor)


def write(path: str, text: bytes) -> None:
    """Write to what is there already, in one call: to these files a second one would be another order.

    Raises:
        OSError: there is no such file, or the kernel does not take it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def inode(directory: str) -> int:
    """What tells a cgroup from another that has its name later: no two ever have the same. -1 where there is none."""
    try:
        return os.stat(directory).st_ino
    except OSError:
        return -1


def try_write(path: str, text: bytes) -> bool:
    """The same, where a refusal is no error: whether it was taken."""
    try:
        write(path, text)
    except OSError:
        return False
    return True

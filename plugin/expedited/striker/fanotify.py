"""Permission events of fanotify(7) and directory events of inotify(7), by ctypes: the numbers, the structs, the calls.

Out of scope: what an event means.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
    "FAN_OPEN_EXEC_PERM",
    "Event",
    "INotify",
    "INotifyEvent",
    "allow",
    "events",
    "mark_binary",
    "mark_directory",
    "open_group",
    "unmark_directory",
]

# include/uapi/linux/fanotify.h
_FAN_CLOEXEC = 0x1
_FAN_NONBLOCK = 0x2
_FAN_CLASS_CONTENT = 0x4
_FAN_UNLIMITED_QUEUE = 0x10
_FAN_UNLIMITED_MARKS = 0x20
_FAN_REPORT_PIDFD = 0x80
_FAN_MARK_ADD = 0x1
_FAN_MARK_REMOVE = 0x2
_FAN_MARK_ONLYDIR = 0x8
_FAN_OPEN_PERM = 0x10000
FAN_OPEN_EXEC_PERM = 0x40000
_FAN_EVENT_ON_CHILD = 0x08000000
_FAN_ALLOW = 0x1
_FAN_EVENT_INFO_TYPE_PIDFD = 4
_METADATA = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata: event_len, vers, -, metadata_len, mask, fd, pid
_INFO = struct.Struct("=BBHi")  # struct fanotify_event_info_pidfd: info_type, -, len, pidfd
_RESPONSE = struct.Struct("=iI")  # struct fanotify_response: fd, response

# include/uapi/linux/inotify.h
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_ISDIR = 0x40000000
_INOTIFY_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len

_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


class Event(NamedTuple):
    """Somebody is held in an open, until :func:`allow` is called for ``fd``.

    ``fd`` is the file being opened, open for reading; ``pidfd`` the opener, or -1 where the kernel gives none.
    """

    mask: int
    fd: int
    pid: int
    pidfd: int


def open_group() -> int:
    """A group for permission events, non-blocking: fanotify_init(2).

    With a pidfd for each opener where the kernel has it (Linux 5.15; later with permission events), without it
    elsewhere.

    Raises:
        OSError: CAP_SYS_ADMIN is missing, or the kernel has no permission events (FANOTIFY_ACCESS_PERMISSIONS).
    """
    flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_CLASS_CONTENT | _FAN_UNLIMITED_QUEUE | _FAN_UNLIMITED_MARKS
    file_flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_LARGEFILE", 0)
    group: int = _libc.fanotify_init(flags | _FAN_REPORT_PIDFD, file_flags)
    if group < 0:
        group = _libc.fanotify_init(flags, file_flags)
    return _check(group, "fanotify_init")


def mark_directory(group: int, directory: str) -> None:
    """Hold everybody who opens a file of this directory: fanotify_mark(2).

    Raises:
        OSError: the directory is gone (ENOENT), or the kernel has no permission events (EINVAL).
    """
    flags = _FAN_MARK_ADD | _FAN_MARK_ONLYDIR
    _check(_mark(group, flags, _FAN_OPEN_PERM | _FAN_EVENT_ON_CHILD, directory), directory)


def unmark_directory(group: int, directory: str) -> None:
    """Take the mark away again; nothing happens where there is none."""
    _mark(group, _FAN_MARK_REMOVE | _FAN_MARK_ONLYDIR, _FAN_OPEN_PERM | _FAN_EVENT_ON_CHILD, directory)


def mark_binary(group: int, path: str) -> None:
    """Hold everybody who executes this file (Linux 5.0).

    Raises:
        OSError: no such file, or a kernel without FAN_OPEN_EXEC_PERM.
    """
    _check(_mark(group, _FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, path), path)


def _mark(group: int, flags: int, mask: int, path: str) -> int:
    result: int = _libc.fanotify_mark(group, flags, mask, _AT_FDCWD, os.fsencode(path))
    return result


def events(group: int) -> Iterator[Event]:
    """Everything that waits now; ends when nothing does. Every event's ``fd`` and ``pidfd`` are the caller's to close."""
    try:
        buffer = os.read(group, 4096)
    except BlockingIOError:
        return
    at, end = 0, len(buffer)
    while at + 24 <= end:
        length, _, _, header, mask, fd, pid = _METADATA.unpack_from(buffer, at)
        pidfd = -1
        if length >= header + 8:
            kind, _, _, descriptor = _INFO.unpack_from(buffer, at + header)
            if kind == _FAN_EVENT_INFO_TYPE_PIDFD:
                pidfd = descriptor
        at += length
        if fd >= 0:  # -1: the queue overflowed, nobody is held
            yield Event(mask, fd, pid, pidfd)


def allow(group: int, fd: int) -> None:
    """Let the opener of ``fd`` go on; does nothing when it was killed meanwhile."""
    try:
        os.write(group, _RESPONSE.pack(fd, _FAN_ALLOW))
    except OSError:
        pass  # ENOENT: the opener is no more; EBADF: the gate is closing, and the kernel lets everybody through


class INotifyEvent(NamedTuple):
    """What happened in a watched directory."""

    watch: int
    mask: int
    name: str


class INotify:
    """One inotify instance, non-blocking."""

    def __init__(self) -> None:
        self.descriptor = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")

    def watch(self, directory: str, mask: int) -> int:
        """Begin to watch; watching a directory again gives the same number.

        Raises:
            OSError: there is no such directory, or fs.inotify.max_user_watches is used up.
        """
        result: int = _libc.inotify_add_watch(self.descriptor, os.fsencode(directory), mask | IN_ONLYDIR)
        return _check(result, directory)

    def read(self) -> list[INotifyEvent]:
        """Everything that has happened; empty when nothing has."""
        found: list[INotifyEvent] = []
        while True:
            try:
                buffer = os.read(self.descriptor, 65536)
            except BlockingIOError:
                return found
            at = 0
            while at < len(buffer):
                watch, mask, _, length = _INOTIFY_EVENT.unpack_from(buffer, at)
                at += _INOTIFY_EVENT.size
                name = buffer[at : at + length].rstrip(b"\0")
                at += length
                found.append(INotifyEvent(watch, mask, os.fsdecode(name)))

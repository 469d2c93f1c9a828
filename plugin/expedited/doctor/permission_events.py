"""The kill gate, tried: hold a process in an open and in an exec, then let it go."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expedited.doctor import process_events
from expedited.doctor.child import child
from expedited.doctor.finding import Area, Finding, Level
from expedited.striker import fanotify

__all__ = ["look"]

_PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 0.01
# What is executed is no program, so the exec fails once it has been let through.
_OPENS_AND_EXECUTES = """
import errno, os, sys
open(sys.argv[1]).close()
try:
    os.execv(sys.argv[1], sys.argv[1:])
except OSError as error:
    raise SystemExit(error.errno)
"""
# No program; no execution at all where the directory is mounted noexec
_EXPECTED_CODES = (errno.ENOEXEC, errno.EACCES)
_WHY_NOT = {
    errno.EPERM: "not allowed: CAP_SYS_ADMIN is missing, or this is not the initial user namespace",
    errno.ENOSYS: "not in this kernel",
    errno.EINVAL: "this kernel has fanotify, and no permission events",
    errno.EMFILE: "this user has too many fanotify groups (fs.fanotify.max_user_groups)",
}
_HOW = "as root with CAP_SYS_ADMIN on the host's user namespace; a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"


@dataclass(slots=True)
class _Seen:
    """What the gate of the trial saw of its child."""

    opens: int = 0
    executions: int = 0
    pidfds: int = 0


def look() -> Iterator[Finding]:
    """fanotify(7): permission events for opens and executions, and who caused them; and what stands in for them."""
    blind = process_events.why_not()
    # With an observer kills are struck all the same, if later
    without = Level.BROKEN if blind else Level.DEGRADED
    try:
        seen, can_hold_executions, code = _try()
    except OSError as error:
        yield _events(_WHY_NOT.get(error.errno or 0, error.strerror or str(error)), without)
        yield process_events.finding(blind, gate=False)
        return
    if not seen.opens:
        if code in _EXPECTED_CODES:
            yield _events("the kernel takes the mark and holds nobody", without)
        else:
            yield _events(
                "the kernel takes the mark; not tried, no process could be made to open a file", Level.UNKNOWN
            )
        yield process_events.finding(blind, gate=False)
        return
    yield _events("an open was held and let go", Level.OK)
    yield process_events.finding(blind, gate=True)
    # Linux kernel commit af579beb666a ("fanotify: add pidfd support to the fanotify API") (in v5.15)
    yield Finding(
        Area.KERNEL,
        "opener's pidfd",
        "comes with the event" if seen.pidfds else "not in this kernel",
        Level.OK if seen.pidfds else Level.DEGRADED,
        "an opener that is killed while it waits could be mistaken for the next process of its number",
        "Linux 5.15 or later (FAN_REPORT_PIDFD)",
    )
    yield _execution(seen, can_hold_executions, code)


def _events(found: str, level: Level) -> Finding:
    return Finding(
        Area.KERNEL,
        "fanotify",
        found,
        level,
        "there is no kill gate: the observer sees kills once they have begun, and strikes follow them; without process"
        " events nothing is struck",
        _HOW,
    )


def _execution(seen: _Seen, can_hold: bool, code: int | None) -> Finding:
    # Linux kernel commit 66917a3130f2 ("fanotify: introduce new event mask FAN_OPEN_EXEC_PERM") (in v5.0)
    if seen.executions:
        found, level = "an execution was held and let go", Level.OK
    elif can_hold and code == errno.EACCES:
        found, level = f"taken by the kernel; not tried, {tempfile.gettempdir()} is mounted noexec", Level.OK
    else:
        found, level = "not in this kernel", Level.DEGRADED
    return Finding(
        Area.KERNEL,
        "exec events",
        found,
        level,
        "a new container is gated by NRI's START hook alone; without NRI its first kill may be missed",
        "Linux 5.0 or later (FAN_OPEN_EXEC_PERM)",
    )


def _try() -> tuple[_Seen, bool, int | None]:
    """Gate one child in a directory of its own.

    Returns:
        What was seen, whether the kernel takes marks for executions, and the child's exit code (None: it hung).
    """
    with tempfile.TemporaryDirectory(prefix="expedited-doctor-") as directory:
        bait = Path(directory, "bait")
        bait.write_text("nothing to execute\n")
        bait.chmod(0o755)
        # From here to its end nothing in this process may open what is in the directory: it would wait for itself.
        group = fanotify.open_group()
        try:
            fanotify.mark_directory(group, directory)
            can_hold_executions = True
            try:
                fanotify.mark_binary(group, str(bait))
            except OSError:
                can_hold_executions = False
            with child(_OPENS_AND_EXECUTES, str(bait)) as opener:
                seen = _answer(group, opener)
                code = opener.poll()
        finally:
            os.close(group)  # whoever still waits goes on
        return seen, can_hold_executions, code


def _answer(group: int, opener: subprocess.Popen[bytes]) -> _Seen:
    """Let everybody through until the opener has ended, or time is up."""
    seen = _Seen()
    end = time.monotonic() + _PATIENCE_SECONDS
    while opener.poll() is None and time.monotonic() < end:
        if not select.select([group], [], [], _LOOK_SECONDS)[0]:
            continue
        for event in fanotify.events(group):
            fanotify.allow(group, event.fd)
            os.close(event.fd)
            if event.pidfd >= 0:
                os.close(event.pidfd)
            if event.pid == opener.pid:  # not an indexer that happened to come by
                seen.opens += not event.mask & fanotify.FAN_OPEN_EXEC_PERM
                seen.executions += bool(event.mask & fanotify.FAN_OPEN_EXEC_PERM)
                seen.pidfds += event.pidfd >= 0
    return seen

"""The observer's source, tried: see a process of our own execute a program."""

from __future__ import annotations

import select
import time
from contextlib import suppress

from expedited.doctor.child import WAITS, child
from expedited.doctor.finding import Area, Finding, Level
from expedited.striker.proc_connector import ProcConnector

__all__ = ["finding", "why_not"]

_PATIENCE_SECONDS = 5.0


def why_not() -> str:
    """Why an execution can't be seen here; empty: one was."""
    try:
        connector = ProcConnector()
    except OSError as problem:
        return problem.strerror or str(problem)
    try:
        return "" if _sees_a_child(connector) else "subscribed to, and no execution was told"
    except OSError as problem:
        return problem.strerror or str(problem)
    finally:
        connector.close()


def _sees_a_child(connector: ProcConnector) -> bool:
    end = time.monotonic() + _PATIENCE_SECONDS
    with child(WAITS) as executor:
        while (left := end - time.monotonic()) > 0:
            select.select([connector.descriptor], [], [], left)
            with suppress(OSError):  # ENOBUFS: a busy machine; the next ones are told
                if executor.pid in connector.executions():
                    return True
    return False


def finding(why: str, *, gate: bool) -> Finding:
    """What was found, where there is a kill gate or is none."""
    # Everybody's since the kernel change "connector/cn_proc: Allow non-root users access" (in v6.6)
    return Finding(
        Area.KERNEL,
        "process events",
        "an execution was seen"
        if not why
        else f"not to be had ({why})" + ("; the kill gate needs none" if gate else ""),
        Level.OK if gate or not why else Level.DEGRADED,
        "where there is no kill gate, kills are not noticed at all",
        "a kernel with CONFIG_PROC_EVENTS; before Linux 6.6 CAP_NET_ADMIN; in a pod, hostPID: true and CAP_SYS_ADMIN with"
        " CAP_SYS_PTRACE, or hostNetwork: true",
    )

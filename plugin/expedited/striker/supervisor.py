"""Keeps the gate alive, and kills it when it hangs.

There is no kernel time-out for a permission event: a gate that hangs holds every runtime command of the node. So it runs
in a child, forked *before* the fanotify group exists. The supervisor never holds the group's descriptor (a duplicate
would keep the gate shut after the child's death), so killing the child opens the gate at once.

Imports next to nothing: it must stay small, and alive when nothing else is.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable

from expedited.striker.heartbeat import Heartbeat
from expedited.striker.log import Log

__all__ = ["HUNG_SECONDS", "supervise"]

#: A gate whose loop has not gone round for this long is killed. It goes round every 0.2 s, and no runtime command may
#: ever wait for longer than 2 s.
HUNG_SECONDS = 1.5

_ENDING = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 0.25
_BACK_OFF_AT_MOST_SECONDS = 5.0
#: SCHED_RR priority: above the gate's, so that a gate that spins can't keep its own supervisor off the CPU.
_PRIORITY = 5


def supervise(gate: Callable[[Heartbeat], int], log: Log) -> int:
    """Run ``gate`` in a child, again and again until a SIGTERM or SIGINT ends it for good.

    Args:
        gate: Runs in the child; its return value is the exit code. 0, 1 and 2 are final (it ended as it was told, or can
            never work here), everything else is followed by a new child.
        log: What a person is told by.

    Returns:
        The exit code.
    """
    # The agent that starts us is limited in what it may compute without a pause; a reaper's one call may last longer
    resource.setrlimit(resource.RLIMIT_RTTIME, (resource.getrlimit(resource.RLIMIT_RTTIME)[1],) * 2)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except OSError:
        pass  # without CAP_SYS_NICE it has to do as an ordinary process
    _lower_oom_score()
    asked_to_stop: list[int] = []
    for number in _ENDING:
        signal.signal(number, lambda signum, _frame: asked_to_stop.append(signum))
    # A signal that comes between a look at the list and the poll must end the poll, too
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    back_off, restarts = 0.1, 0
    while True:
        started = time.monotonic()
        heartbeat = Heartbeat(restarts)
        # A signal for the child that came before it has let go of our handlers would be heard by nobody
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            pid = os.fork()
        except OSError as error:
            pid, why = -1, f"no gate could be started ({error.strerror})"
        if pid == 0:
            _run_child(gate, heartbeat, log)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if pid > 0:
            code = _watch(pid, heartbeat, asked_to_stop, reader, log)
            if asked_to_stop or code in (0, 1, 2):
                return max(code, 0)
            why = f"the gate ended ({'signal' if code < 0 else 'code'} {abs(code)})"
        restarts += 1
        back_off = 0.1 if time.monotonic() - started > 60 else min(_BACK_OFF_AT_MOST_SECONDS, back_off * 2)
        log.error(f"{why}; a new one in {back_off:.1f} s")
        select.select([reader], [], [], back_off)
        if asked_to_stop:
            return 0


def _run_child(gate: Callable[[Heartbeat], int], heartbeat: Heartbeat, log: Log) -> None:
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        code = gate(heartbeat)
    except BaseException as error:
        log.error(f"the gate failed: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _watch(pid: int, heartbeat: Heartbeat, asked_to_stop: list[int], reader: int, log: Log) -> int:
    """Until the child ends; its exit code, or minus the signal that killed it."""
    pidfd = os.pidfd_open(pid)
    told = False
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(reader, select.POLLIN)
    looked, excused = time.monotonic(), False
    try:
        while True:
            ready = {descriptor for descriptor, _ in poller.poll(_LOOK_SECONDS * 1000)}
            before, looked = looked, time.monotonic()
            if reader in ready:
                os.read(reader, 64)
            if pidfd in ready:
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if asked_to_stop and not told:
                told = True
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            age_seconds = heartbeat.age_seconds()
            # Where the whole machine has stood still, the gate's beat is as old as our own last look: it gets one more round
            excuse = looked - before >= 2 * _LOOK_SECONDS and not excused
            excused = excuse and age_seconds > HUNG_SECONDS
            if age_seconds > HUNG_SECONDS and not excuse:
                # First of all: the line that says so may have to wait for whoever reads it
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                log.error(f"the gate has not gone round for {age_seconds:.1f} s: it was killed, which opens it")
                poller.unregister(reader)
                poller.poll()
    finally:
        os.close(pidfd)


def _lower_oom_score() -> None:
    """The last that the kernel's OOM killer would take: what gives memory back must not go first."""
    for score in ("-999", "0"):
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(score)
        except OSError:
            continue  # to lower it takes CAP_SYS_RESOURCE
        return

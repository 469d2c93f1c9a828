"""The agent's real-time priority, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_REALTIME = os.SCHED_RR


def _can_be_realtime() -> bool:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    os.sched_setscheduler(0, *before)
    return True


pytestmark = pytest.mark.skipif(not _can_be_realtime(), reason="no real-time priority here")


def _in_a_process(*lines: str) -> tuple[list[str], str]:
    """What it says, in words; and what it has on stderr."""
    program = "\n".join(
        ("import os, subprocess, sys, threading, time", "from expedited.agent.priority import go_first", *lines)
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_it_goes_first_and_its_threads_with_it() -> None:
    said, complaints = _in_a_process(
        "assert go_first()",
        "print(os.sched_getscheduler(0))",
        "thread = threading.Thread(target=lambda: print(os.sched_getscheduler(0)))",
        "thread.start()",
        "thread.join()",
    )
    assert (said, complaints) == ([str(_REALTIME)] * 2, "")


def test_who_never_pauses_loses_the_priority_and_nothing_else() -> None:
    said, log = _in_a_process(
        "asleep = threading.Thread(target=time.sleep, args=(3600,), daemon=True)",
        "assert go_first(0.1)",
        "asleep.start()",
        "while os.sched_getscheduler(0) != os.SCHED_OTHER:",
        "    pass",
        "print({os.sched_getscheduler(int(thread)) for thread in os.listdir('/proc/self/task')})",
    )
    assert said == [f"{{{os.SCHED_OTHER}}}"]
    line = json.loads(log)  # one, in the log's form where no person reads it
    assert (line["event"], line["level"]) == ("0.1 s without a pause: real-time no longer", "warning")

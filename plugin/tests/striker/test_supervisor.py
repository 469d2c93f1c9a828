"""What the supervisor says when its gate fails: in the log's form, as all that the striker says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_PROGRAM = """
import sys
from expedited.striker.log import Log
from expedited.striker.supervisor import supervise

def gate(heartbeat):
    raise ValueError("no such thing")

sys.exit(supervise(gate, Log.of_format(sys.argv[1])))
"""


@contextmanager
def _failing(log_format: str) -> Iterator[Iterator[str]]:
    """The lines of a supervisor whose every gate fails; it ends when it is told to."""
    command = [sys.executable, "-c", _PROGRAM, log_format]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield iter(process.stderr)
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(30) in (0, 70)  # the gate's own, where one was failing at that moment
        finally:
            process.kill()


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_a_gate_that_fails_is_a_line_of_the_log_with_its_error(log_format: str) -> None:
    with _failing(log_format) as lines:
        failed, ended = (json.loads(next(lines)) for _ in range(2))
    assert (failed["event"], failed["level"]) == ("the gate failed: ValueError: no such thing", "error")
    assert re.fullmatch(r"the gate ended \(code 70\); a new one in \d\.\d s", ended["event"])
    assert failed["striker"] != ended["striker"]  # the one is the gate's own word, the other its supervisor's
    assert failed.keys() == ended.keys()


def test_a_person_reads_the_same_in_words() -> None:
    with _failing("console") as lines:
        said = next(lines)
    assert re.fullmatch(r"\S+Z \[error    \] striker\[\d+\]: the gate failed: ValueError: no such thing\n", said)

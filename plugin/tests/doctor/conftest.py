"""An examination in a process of its own, under whatever is taken from it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from expedited.settings import AgentSettings

# Prints what `expedited doctor --json` prints, with settings from the command line in place of the machine's
_EXAMINE = """
import sys
from expedited.cli.doctor import run_doctor
from expedited.settings import AgentSettings
sys.exit(run_doctor(AgentSettings.from_json(sys.argv[1]), json=True))
"""

# Makes a system call fail, as on a kernel without it or under a container's seccomp profile, and becomes what follows.
# The filter is struct sock_fprog of include/uapi/linux/filter.h: load the call's number, compare, answer.
_WITHOUT_CALL = """
import ctypes, os, struct, sys
number, code = int(sys.argv[1]), int(sys.argv[2])
LOAD, EQUAL, RETURN, ALLOW, ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
lines = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | code), (RETURN, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
filter = struct.pack("@HP", len(lines), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def without_call() -> Callable[[int, int], list[str]]:
    """``without_call(number, errno)``: the words that make a system call fail in whatever comes after them."""
    return lambda number, code: [sys.executable, "-c", _WITHOUT_CALL, str(number), str(code)]


@dataclass(frozen=True)
class Examined:
    """What came out of it."""

    exit_code: int
    works: bool
    findings: dict[str, dict[str, str]]

    def level(self, name: str) -> str:
        return self.findings[name]["level"]

    def found(self, name: str) -> str:
        return self.findings[name]["found"]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """In /tmp and not where pytest keeps its own, as the paths of sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="expedited-test-") as directory:
        yield Path(directory)


@pytest.fixture
def settings(run_dir: Path) -> AgentSettings:
    """Of a machine with no runtime and no agent."""
    return AgentSettings(
        run_dir=str(run_dir),
        state_roots=(f"{run_dir}/runc/*",),
        nri_socket=f"{run_dir}/nri.sock",
        containerd_socket=f"{run_dir}/containerd.sock",
    )


@pytest.fixture
def examined_under(settings: AgentSettings) -> Callable[..., Examined]:
    """``examined_under("setpriv", ...) -> Examined``: the words go before Python's command."""

    def run(*under: str, **changes: str) -> Examined:
        wanted = replace(settings, **changes)  # type: ignore[arg-type]
        command = [*under, sys.executable, "-c", _EXAMINE, wanted.to_json()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert not done.stderr, done.stderr
        said = json.loads(done.stdout)
        by_name = {finding["name"]: finding for finding in said["findings"]}
        return Examined(done.returncode, said["works"], by_name)

    return run

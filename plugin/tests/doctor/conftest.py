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
from support import seccomp

# Prints what `expedited doctor --json` prints, with settings from the command line in place of the machine's
_EXAMINE = """
import sys
from expedited.cli.doctor import run_doctor
from expedited.settings import AgentSettings
sys.exit(run_doctor(AgentSettings.from_json(sys.argv[1]), json=True))
"""


@pytest.fixture
def without_call() -> Callable[[int, int], list[str]]:
    """``without_call(number, errno)``: the words that make a system call fail in whatever comes after them."""
    return seccomp.without_call


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

"""Real process trees in cgroups of our own."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from expedited.demo.cache import built_once, content_key
from expedited.demo.image import workload_binary
from expedited.teardown.roster import Roster

_SHAPES = Path(__file__).with_name("shapes.c")


def _build(directory: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler (cc): apt-get install gcc libc6-dev"
    subprocess.run([compiler, "-O2", "-static", "-pthread", "-o", directory / "shapes", _SHAPES], check=True)


@pytest.fixture(scope="session")
def shapes_binary() -> Path:
    key = content_key([_SHAPES.read_bytes(), platform.machine().encode()])
    return built_once("test-shapes", key, _build) / "shapes"


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """``launch(program, *arguments, cgroup=ScratchCgroup or None) -> Popen``, which has printed READY."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(*command: Any, cgroup: Any = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            preexec_fn=None if cgroup is None else lambda: cgroup.add(os.getpid()),
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"READY\n", command
        return process

    yield launch
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def hog(launch: Callable[..., Any]) -> Callable[..., Any]:
    """``hog("--bytes", "8M", ..., cgroup=...) -> Popen``: the demo's workload, READY."""
    return lambda *flags, cgroup=None: launch(workload_binary("hog"), *flags, cgroup=cgroup)


@pytest.fixture
def shape(launch: Callable[..., Any], shapes_binary: Path) -> Callable[..., Any]:
    """``shape("shared", 8 << 20, cgroup=...) -> Popen``: a process, or several, of that shape (shapes.c)."""
    return lambda *words, cgroup=None: launch(shapes_binary, *words, cgroup=cgroup)


@pytest.fixture
def take_number(launch: Callable[..., Any], shapes_binary: Path) -> Callable[[int], Any]:
    """``take_number(pid) -> Popen``: its child is a process outside every scratch cgroup with that number."""

    def take(pid: int) -> Any:
        give_up_at = time.monotonic() + 10
        while True:
            with suppress(AssertionError):  # somebody else on the machine may have the number for a moment
                return launch(shapes_binary, "as", pid)
            assert time.monotonic() < give_up_at, f"pid {pid} is never free"

    return take


@pytest.fixture
def after_listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """``after_listing(act)``: ``act`` once, when the cgroup was listed and no pidfd is open yet."""

    def arrange(act: Callable[[], None]) -> None:
        real = os.pidfd_open
        done: list[bool] = []

        def pidfd_open(pid: int, flags: int = 0) -> int:
            if not done:
                done.append(True)
                act()
            return real(pid, flags)

        monkeypatch.setattr("os.pidfd_open", pidfd_open)

    return arrange


@pytest.fixture
def after_enrolment(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """``after_enrolment(act)``: ``act`` once, when everybody is held by a pidfd and nobody was signalled yet."""

    def arrange(act: Callable[[], None]) -> None:
        real = Roster.enrol
        done: list[bool] = []

        def enrol(self: Roster) -> Any:
            newcomers = real(self)
            if not done:
                done.append(True)
                act()
            return newcomers

        monkeypatch.setattr(Roster, "enrol", enrol)

    return arrange

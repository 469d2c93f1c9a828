"""A striker over state directories of our own, and a runtime's stand-in (runc.c) that passes its gate."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from expedited.demo.cache import built_once, content_key
from expedited.demo.image import workload_binary
from support.striker import StrikerProcess
from support.waiting import wait_for

_RUNC = Path(__file__).with_name("runc.c")


def _build(directory: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler (cc): apt-get install gcc libc6-dev"
    subprocess.run([compiler, "-O2", "-static", "-o", directory / "runc", _RUNC], check=True)


@pytest.fixture(scope="session")
def runc_binary() -> Path:
    key = content_key([_RUNC.read_bytes(), platform.machine().encode()])
    return built_once("test-runc", key, _build) / "runc"


class Node:
    """State directories as a runtime keeps them, and the runtime's command line."""

    def __init__(self, root: Path, runc: Path, stack: ExitStack) -> None:
        self.state_root = root / "runc" / "*"
        self.namespace = root / "runc" / "k8s.io"
        self._runc = runc
        self._stack = stack

    def container(self, container_id: str, cgroup: Any, *flags: str, padding: int = 0, crun: bool = False) -> Any:
        """A hog in that cgroup, and the state that the runtime has of it; the hog's Popen."""
        process = subprocess.Popen(
            [workload_binary("hog"), *(flags or ("--bytes", "8M"))],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: cgroup.add(os.getpid()),
            start_new_session=True,
        )
        self._stack.callback(self._end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"READY\n"
        self.adopt(container_id, process.pid, cgroup, padding=padding, crun=crun)
        return process

    def adopt(self, container_id: str, pid: int, cgroup: Any, *, padding: int = 0, crun: bool = False) -> None:
        """The state that a runtime has of a container whose init is this process."""
        start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        if crun:
            status = {"pid": pid, "process-start-time": start, "cgroup-path": cgroup.path}
            self.state(container_id, status, name="status")
            return
        paths = {"" if key == "unified" else key: str(place) for key, place in cgroup.directories.items()}
        state = {
            "padding": ["x"] * padding,
            "id": container_id,
            "init_process_pid": pid,
            "init_process_start": start,
            "cgroup_paths": paths,
        }
        if padding:  # the stand-in reads no more than a little
            state["padding"] = state.pop("padding")
        self.state(container_id, state)

    def state(self, container_id: str, content: Any, *, name: str = "state.json") -> Path:
        """Write a container's state as runc does: under another name, then moved."""
        directory = self.namespace / container_id
        directory.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
        (directory / "state-1").write_text(text)
        (directory / "state-1").rename(directory / name)
        return directory

    def begin(
        self, *words: str, idle: bool = False, slow: bool = False, file: str = "state.json", namespace: str = "k8s.io"
    ) -> subprocess.Popen[str]:
        """``runc --root DIR WORDS``, under way; a slow one signals nobody before its standard input ends."""
        log = str(self.namespace.parent / "log.json")
        root = str(self.namespace.with_name(namespace))
        arguments = ["runc", "--root", root, "--log", log, "--log-format", "json", *words]
        environment = {
            "RUNC_FILE": file,
            **({"RUNC_IDLE": "1"} if idle else {}),
            **({"RUNC_SLOW": "1"} if slow else {}),
        }
        process = subprocess.Popen(
            arguments,
            executable=self._runc,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._stack.callback(self._end, process)
        return process

    def run(self, *words: str, idle: bool = False, file: str = "state.json") -> int:
        """The same, through the gate and to its end; its exit status."""
        process = self.begin(*words, idle=idle, file=file)
        output, _ = process.communicate(timeout=30)
        assert output == "opened\n"
        return process.returncode

    @staticmethod
    def _end(process: subprocess.Popen[Any]) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def node(runc_binary: Path) -> Iterator[Node]:
    with (
        tempfile.TemporaryDirectory(prefix="expedited-node-", ignore_cleanup_errors=True) as root,
        ExitStack() as stack,
    ):
        one = Node(Path(root), runc_binary, stack)
        one.namespace.mkdir(parents=True)
        yield one


@pytest.fixture
def make_striker(node: Node) -> Iterator[Callable[..., StrikerProcess]]:
    """``make_striker("--budget=1", ..., cgroup=None) -> StrikerProcess`` over the node's state directories.

    It holds no executions unless it is told to: this machine's own runtimes are not a test's to hold.
    """
    with ExitStack() as stack:

        def make(*options: str, **popen: Any) -> StrikerProcess:
            # A short path, as a socket's has to be
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="expedited-run-")))
            if not any(option.startswith("--hold-executions") for option in options):
                options = (*options, "--hold-executions=off")
            if not any(option.startswith("--state-root") for option in options):
                options = (*options, f"--state-root={node.state_root}")
            one = StrikerProcess(run_dir, *options, **popen)
            stack.callback(one.close)
            return one

        yield make


@pytest.fixture
def striker(make_striker: Callable[..., StrikerProcess]) -> StrikerProcess:
    return make_striker()


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(condition, complaint)``: ask until it is so."""
    return wait_for


@pytest.fixture
def run_script() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """``run_script(cgroup, script, *words)``: Python in the cgroup that has said R; it is killed in the end."""
    made: list[subprocess.Popen[bytes]] = []

    def run(cgroup: Any, script: str, *words: object) -> subprocess.Popen[bytes]:
        one = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: cgroup.add(os.getpid()),
        )
        made.append(one)
        assert one.stdout is not None
        assert one.stdout.readline() == b"R\n"
        return one

    yield run
    for one in made:
        one.kill()
        one.wait()
        for stream in (one.stdin, one.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def starved(busy_loops: Callable[..., AbstractContextManager[None]]) -> Callable[[Any], Any]:
    """``with starved(cgroup): ...``: it gets next to no CPU, and who is killed in it can't exit at once."""

    @contextmanager
    def starved(cgroup: Any) -> Iterator[None]:
        name, place, least, usual = (
            ("cpu.weight", "unified", "1", "100") if cgroup.version == 2 else ("cpu.shares", "cpu", "10", "1024")
        )
        weight = cgroup.directories[place] / name
        if weight.exists():
            weight.write_text(least)
        else:  # a hierarchy without the CPU controller: its members yield to everybody else
            for pid in cgroup.pids():
                os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        try:
            with busy_loops(each_cpu=1):
                yield
        finally:
            if weight.exists():
                weight.write_text(usual)

    return starved

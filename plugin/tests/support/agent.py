"""An agent, and the command line that asks it."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from expedited.api.client import ApiClient
from expedited.cli import main

__all__ = ["AgentProcess", "agents"]

# A worker of the striker's that gets no CPU for 50 ms, its usual budget, is this machine's affair
_DEFAULT_FLAGS = ("--metrics-address=", "--log-level=debug", "--budget=1s")


class AgentProcess:
    """``expedited run``, and the command line that asks it.

    Args:
        run_dir: Its own; the path must be short.
        flags: Of ``expedited run``.
    """

    program = Path(sys.executable).with_name("expedited")

    def __init__(self, run_dir: Path, *flags: str) -> None:
        self.run_dir = run_dir
        self.socket = run_dir / "expedited.sock"
        self.log_path = run_dir / f"agent-{secrets.token_hex(3)}.log"
        if not any(flag.startswith(("--state-root", "--config")) for flag in flags):
            # This machine's own containers are not a test's to strike
            flags = (*flags, "--state-root=/no/runtime/of/this/machine/*")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [self.program, "run", f"--run-dir={run_dir}", *_DEFAULT_FLAGS, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )

    @staticmethod
    def environment() -> dict[str, str]:
        """Ours, but for what would configure the agent."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("EXPEDITED_", "NRI_"))}

    def log(self) -> list[dict[str, Any]]:
        """Every line of its log, and of its striker's, so far."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")  # it may be writing the last one
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def told(self, event: str) -> list[dict[str, Any]]:
        """The log's lines with these words in their event."""
        return [line for line in self.log() if event in line["event"]]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command against this agent: the program's ``main``, in this process, as each start takes a second."""
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        argv = [str(self.program), *arguments, f"--run-dir={self.run_dir}"]
        with redirect_stdout(stdout), redirect_stderr(stderr), mock.patch.object(sys, "argv", argv):
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(argv, code, stdout.getvalue(), stderr.getvalue())

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints with ``--json``, an object a line."""
        answer = self.cli(*arguments, "--json")
        assert answer.returncode == 0, answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]

    def ask(self) -> ApiClient:
        """A connection to its control API."""
        return ApiClient(str(self.socket))

    def wait(self, condition: Callable[[], object], what: str, timeout_seconds: float = 30.0) -> None:
        """Until it is so; the agent's end is the end of waiting, too."""
        give_up_at = time.monotonic() + timeout_seconds
        while not condition():
            assert self.process.poll() is None, f"the agent has ended:\n{self.log_path.read_text()}"
            assert time.monotonic() < give_up_at, f"{what}; its log:\n{self.log_path.read_text()}"
            time.sleep(0.02)

    def wait_told(self, event: str, times: int = 1) -> None:
        """Until the log has these words so many times."""
        self.wait(lambda: len(self.told(event)) >= times, f"it never said {event!r}")

    def stops_of(self, container_id: str) -> list[dict[str, Any]]:
        """What it has told so far of this container's stops."""
        return [line for line in self.told("stop") if line["event"] == "stop" and line["id"] == container_id]

    def stop_of(self, container_id: str) -> dict[str, Any]:
        """The one stop of this container that it tells of, when it has."""
        self.wait(lambda: self.stops_of(container_id), f"no stop of {container_id}")
        (stop,) = self.stops_of(container_id)
        return stop

    def wait_known(self, *container_ids: str) -> dict[str, Any]:
        """Until it knows them with their pods, and gates them; all that it knows, by id."""
        known: dict[str, Any] = {}

        def here() -> bool:
            with self.ask() as asked:
                known.update({each.id: each for each in asked.containers(sandboxes=True)})
            wanted = [known.get(name) for name in container_ids]
            return all(each and each.pod.name and each.state == "running" and each.gated for each in wanted)

        self.wait(here, f"{container_ids} not all known")
        return known

    def pids(self) -> dict[str, int]:
        """Of its processes, by their names."""
        with self.ask() as asked:
            return {process.name: process.pid for process in asked.status().processes}

    def close(self) -> None:
        """SIGTERM; it and its striker end in order."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            assert self.process.wait(30) == 0, self.log_path.read_text()
            assert "Traceback" not in self.log_path.read_text()
        finally:
            self.process.kill()
            self.process.wait()


@contextmanager
def agents(run_dir: Path) -> Iterator[Callable[..., AgentProcess]]:
    """``start(*flags, ready=True) -> AgentProcess``: with no runtime unless flags say so; all are ended after."""
    started: list[AgentProcess] = []

    def start(*flags: str, ready: bool = True) -> AgentProcess:
        agent = AgentProcess(run_dir, "--nri-socket=", "--containerd-socket=", *flags)
        started.append(agent)
        if ready:
            agent.wait_told("the kill gate is up")
        return agent

    with ExitStack() as stack:
        stack.callback(lambda: [stack.callback(agent.close) for agent in started])
        yield start

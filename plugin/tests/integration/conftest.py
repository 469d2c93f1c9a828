"""A striker beside the private containerd: started for one test, its reports at hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expedited.demo.cri import Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.striker.link import StrikerLink
from expedited.teardown.report import Report


class Striker:
    """``python -m expedited.striker`` over the private containerd's state directories."""

    def __init__(self, run_dir: str, *state_roots: str, **policy: Any) -> None:
        self.run_dir = run_dir
        self.socket = f"{run_dir}/striker.sock"
        self.log_path = Path(run_dir) / "striker.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "expedited.striker",
                    f"--run-dir={run_dir}",
                    *(f"--state-root={root}" for root in state_roots),
                    f"--policy={json.dumps(policy)}",
                    "--budget=1",  # a worker that gets no CPU for 50 ms is this machine's affair
                ],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            self.ready: dict[str, Any] = json.loads(self._line())
            self.link = StrikerLink.connect(self.socket)
        except BaseException:
            self.process.kill()  # and its gate with it
            raise

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the striker did not start: {self.log_path.read_text()}"
        return line

    def status(self) -> dict[str, Any]:
        with StrikerLink.connect(self.socket) as link:
            return link.ask("status")

    def policy(self, **policy: Any) -> None:
        self.link.send("policy", default=policy)
        self.status()  # its answer comes after the policy was taken

    def report_of(self, container_id: str, timeout_seconds: float = 30.0) -> Report:
        """The next report about this container."""
        give_up_at = time.monotonic() + timeout_seconds
        while time.monotonic() < give_up_at:
            message = self.link.receive(1.0)
            if message and message["is"] == "report" and message["report"]["container_id"] == container_id:
                return Report.from_json(message["report"])
        raise AssertionError(f"no report of {container_id}; the striker's log: {self.log_path.read_text()}")

    def reports(self) -> list[Report]:
        """All that it remembers."""
        with StrikerLink.connect(self.socket) as link:
            return [Report.from_json(report) for report in link.ask("reports", after=0)["reports"]]

    def wait_gated(self, container_id: str) -> None:
        wait_for(lambda: container_id in self.status()["gated"], f"{container_id} is not gated")

    def wait_reported(self, *container_ids: str) -> dict[str, Report]:
        """The last report about each of these, when there are all."""
        found: dict[str, Report] = {}

        def are_there() -> bool:
            found.update((report.container_id, report) for report in self.reports())
            return found.keys() >= set(container_ids)

        wait_for(are_there, "reports are missing", 30)
        return found

    def close(self) -> None:
        self.link.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        try:
            assert self.process.wait(20) == 0, self.log_path.read_text()
        finally:
            self.process.kill()


def wait_for(condition: Callable[[], bool], complaint: str, timeout_seconds: float = 20.0) -> None:
    """Ask until it is so."""
    give_up_at = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < give_up_at, complaint
        time.sleep(0.02)


@pytest.fixture
def run_dir() -> Iterator[str]:
    # Not under pytest's own directory: the paths of sockets must be short
    with tempfile.TemporaryDirectory(prefix="expedited-run-") as directory:
        yield directory


@pytest.fixture
def striker(containerd: PrivateContainerd, run_dir: str) -> Iterator[Striker]:
    """A striker over the private containerd, with the default policy."""
    Path(run_dir).chmod(0o700)
    one = Striker(run_dir, containerd.state_root)
    yield one
    one.close()


@pytest.fixture
def start(containerd: PrivateContainerd, start_agent: Callable[..., Any]) -> Callable[..., Any]:
    """``start(*flags) -> AgentProcess`` on the private containerd, connected to all of it."""

    def start(*flags: str, nri: bool = True, api: bool = True, ready: bool = True, **options: Any) -> Any:
        sockets = [f"--nri-socket={containerd.nri_socket}"] if nri else []
        sockets += [f"--containerd-socket={containerd.socket}"] if api else []
        agent = start_agent(f"--state-root={containerd.state_root}", *sockets, *flags, ready=ready, **options)
        if ready and nri:
            agent.wait_told("NRI: synchronized")
        if ready and api:
            agent.wait_told(" answers")
        return agent

    return start


@pytest.fixture
def annotated(make_pod: Callable[..., Pod]) -> Callable[..., Pod]:
    """``annotated(mode="observe", page_cache="drop") -> Pod``, with these annotations of ours and one of somebody else."""

    def annotated(**annotations: str) -> Pod:
        named = {f"expedited.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
        return make_pod(PodSpec(annotations={**named, "other.io/mode": "off"}))

    return annotated

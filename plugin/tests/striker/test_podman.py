"""Real podman and crun: who has no containerd shim between itself and its runtime gets the answers that it is used to."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expedited.demo.image import workload_binary
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.report import Outcome

_HOG = ("--bytes", "32M", "--children", "2", "--ignore-term")

pytestmark = [
    pytest.mark.skipif(
        bool(hierarchies().controllers), reason="crun wants cgroup version 2 alone: `make test-vm` has it"
    ),
    pytest.mark.skipif(shutil.which("podman") is None, reason="no podman here: apt-get install podman crun"),
]


class Podman:
    """Containers of a directory of our own; where crun keeps their state is not to be chosen."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "rootfs"
        self._root.mkdir()
        shutil.copy(workload_binary("hog"), self._root / "hog")
        places = (f"--root={directory}/storage", f"--runroot={directory}/run", "--storage-driver=vfs")
        self._command = ("podman", *places, "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=crun")

    def __call__(self, *words: str, **popen: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOME": "/root"}
        return subprocess.run([*self._command, *words], capture_output=True, text=True, env=environment, **popen)

    def run(self, *options: str, **popen: Any) -> str:
        """A container of hog, READY; its id."""
        words = ("run", "--detach", "--network=none", "--ulimit=host", *options)
        answer = self(*words, "--rootfs", str(self._root), "/hog", *_HOG, **popen)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    def state(self, container: str) -> dict[str, Any]:
        (inspected,) = json.loads(self("inspect", container).stdout)
        state: dict[str, Any] = inspected["State"]
        return state


@pytest.fixture
def podman() -> Iterator[Podman]:
    # Not under pytest's own directory: podman takes no path of more than 50 characters
    with tempfile.TemporaryDirectory(prefix="expedited-podman-", ignore_cleanup_errors=True) as directory:
        one = Podman(Path(directory))
        yield one
        one("rm", "--force", "--all", "--time=0")


@pytest.fixture
def striker(make_striker: Callable[..., Any]) -> Any:
    Path("/run/crun").mkdir(exist_ok=True)
    # Whatever else this machine has there is not a test's to strike
    return make_striker("--state-root=/run/crun", '--policy={"mode": "off"}')


def let_strike(striker: Any, container: str) -> None:
    """This one container may be struck."""
    striker.wait_gated(container)
    striker.link.send("policy", containers={container: {"mode": "strike"}})
    striker.status()  # its answer comes after the policy was taken


@pytest.mark.parametrize(
    "how", [("kill",), ("stop", "--time=1"), ("rm", "--force", "--time=0")], ids=lambda how: how[0]
)
def test_podman_is_answered_as_ever(podman: Podman, striker: Any, until: Any, how: tuple[str, ...]) -> None:
    container = podman.run("--restart=always")
    let_strike(striker, container)
    until(lambda: "READY" in podman("logs", container).stdout, "it is not ready")

    answer = podman(*how, container)

    assert answer.returncode == 0, answer.stderr
    report = striker.report_of(container)
    # Had it been led, `podman kill` would find nobody to kill, say so, and start the container again
    assert (report.outcome, report.order, report.trigger) == (Outcome.STRUCK, "follow", "gate:kill")
    assert report.process_count == 3
    if how[0] != "rm":
        until(lambda: not podman.state(container)["Running"], "it runs on")
        assert podman.state(container)["ExitCode"] == 137


def test_without_a_cgroup_of_its_own_nobody_else_is_struck(
    podman: Podman, striker: Any, make_cgroup: Any, alive: Any, until: Any
) -> None:
    callers = make_cgroup()

    def join() -> None:
        callers.add(os.getpid())

    with subprocess.Popen(["sleep", "1000"], preexec_fn=join) as bystander:
        try:
            container = podman.run("--cgroups=disabled", f"--name=t-{secrets.token_hex(3)}", preexec_fn=join)
            let_strike(striker, container)
            assert podman("stop", "--time=1", container).returncode == 0
            report = striker.report_of(container)
            assert (report.outcome, report.cgroup) == (Outcome.FAILED, "")
            assert "no cgroup of its own" in report.reason
            assert alive(bystander.pid)
            until(lambda: podman.state(container)["ExitCode"] == 137, "it did not end by its runtime's own kill")
        finally:
            bystander.kill()

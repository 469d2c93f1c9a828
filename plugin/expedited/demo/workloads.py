"""The closing scene: a real server from the distribution's packages, stopped with the striker on, and its receipt."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from expedited.demo.cri import ContainerSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import image_from_debian, program_file
from expedited.demo.stage import memory_directory, run_striker
from expedited.errors import ExpeditedError
from expedited.striker.link import StrikerLink
from expedited.teardown.memory_stat import anon_bytes
from expedited.teardown.report import Report

__all__ = ["WORKLOADS", "StoppedWorkload", "stop_workload"]

_REPORT_SECONDS = 40.0
_FILL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Workload:
    """A program of the distribution.

    Attributes:
        programs: Program -> Debian package.
        arguments: Of the first program.
        fill: A command to run in the container until it succeeds, or empty.
        bytes_wanted: Anonymous memory that it has when it is ready.
    """

    programs: dict[str, str]
    arguments: tuple[str, ...]
    fill: tuple[str, ...]
    bytes_wanted: int


# One call, so that it is the server's own allocator that makes the memory what it is in real life: many small objects.
_REDIS_FILL = "for i = 1, 300000 do redis.call('set', 'key:' .. i, string.rep('x', 600) .. i) end return 'filled'"

WORKLOADS: dict[str, _Workload] = {
    "redis": _Workload(
        {"redis-server": "redis-server", "redis-cli": "redis-tools"},
        ("--port", "0", "--unixsocket", "/tmp/redis.sock", "--save", "", "--dir", "/tmp"),
        ("redis-cli", "-s", "/tmp/redis.sock", "eval", _REDIS_FILL, "0"),
        200 << 20,
    ),
    "stress-ng": _Workload(
        {"stress-ng": "stress-ng"},
        ("--vm", "4", "--vm-bytes", "512M", "--vm-hang", "0", "--temp-path", "/tmp"),
        (),
        480 << 20,
    ),
}


@dataclass(frozen=True, slots=True)
class StoppedWorkload:
    """What a workload's stop came to."""

    name: str
    exit_code: int
    stop_seconds: float
    report: Report


def stop_workload(daemon: PrivateContainerd, name: str, say: Callable[[str], None]) -> StoppedWorkload:
    """Run it in a pod, let it fill its memory, stop it with the striker on.

    Raises:
        ExpeditedError: it is not installed, did not come up, or no report came.
    """
    workload = WORKLOADS[name]
    say(f"{name}: making an image of this machine's package")
    image = image_from_debian(daemon, name, workload.programs)
    with run_striker(daemon) as socket, StrikerLink.connect(str(socket)) as link:
        pod = daemon.cri.run_pod()
        try:
            command = (program_file(*next(iter(workload.programs.items()))), *workload.arguments)
            container_id = daemon.cri.create_container(pod, ContainerSpec(image, command))
            daemon.cri.start_container(container_id)
            say(f"{name}: filling its memory")
            _fill(daemon, container_id, f"{pod.cgroup_parent}/{container_id}", workload)
            say(f"{name}: stopping it")
            began = time.monotonic()
            daemon.cri.stop_container(container_id)
            seconds = time.monotonic() - began
            link.send("reports", after=0)
            report = link.report_of(container_id, _REPORT_SECONDS)
            if report is None:
                raise ExpeditedError(f"the striker sent no report of container {container_id[:12]}")
            return StoppedWorkload(name, daemon.cri.container(container_id).exit_code, seconds, report)
        finally:
            with suppress(ExpeditedError):
                daemon.cri.remove_pod(pod.id)


def _fill(daemon: PrivateContainerd, container_id: str, cgroup: str, workload: _Workload) -> None:
    directory, version = memory_directory(cgroup)
    deadline = time.monotonic() + _FILL_SECONDS
    filled = not workload.fill
    while True:
        state = daemon.cri.container(container_id)
        if state.state != "running" or time.monotonic() > deadline:
            printed = state.log_path.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise ExpeditedError(f"{next(iter(workload.programs))} did not come up; it printed last: {printed[-1]}")
        if not filled:
            program = program_file(workload.fill[0], workload.programs[workload.fill[0]])
            done = daemon.cri.exec_sync(container_id, (program, *workload.fill[1:]), timeout_seconds=60)
            # redis-cli says 0 whatever the server says
            filled = done.exit_code == 0 and b"filled" in done.stdout
        if filled and anon_bytes((directory / "memory.stat").read_bytes(), version) >= workload.bytes_wanted:
            return
        time.sleep(0.05)

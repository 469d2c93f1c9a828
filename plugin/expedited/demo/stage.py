"""One stop, stock or expedited, measured: what is around the container, and the measurement itself.

"Stock" means that nothing of ours runs: the striker is started for each expedited stop, before its container is made, and
has ended before the next stock one.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from expedited.demo.cri import ContainerSpec, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE, workload_binary
from expedited.demo.measure import Meter
from expedited.demo.scenarios import Scenario, Stop
from expedited.errors import ExpeditedError
from expedited.teardown.files import write
from expedited.teardown.hierarchies import hierarchies

__all__ = ["memory_directory", "pod_for", "run_striker", "stop_once"]

#: A contended stock stop is given up, and counted as this long, after so many seconds.
PATIENCE_SECONDS = 20.0

_START_SECONDS = 60.0
_END_SECONDS = 10.0
# The scheduler needs a moment until the weights and quotas are what counts: a sleeper starts with a small credit.
_SETTLE_SECONDS = 0.3


@contextmanager
def run_striker(daemon: PrivateContainerd) -> Iterator[Path]:
    """A striker that gates this containerd alone; gives the path of its socket when the gate is up.

    Raises:
        ExpeditedError: it can't gate here; says what it said.
    """
    run_dir = daemon.root / "run" / secrets.token_hex(4)
    run_dir.mkdir(parents=True)
    log_path = daemon.root / "striker.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "expedited.striker", "--run-dir", run_dir, "--state-root", daemon.state_root],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            # A terminal's Ctrl-C is for us
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], _START_SECONDS)[0] or not process.stdout.readline():
            said = (log_path.read_text().strip().splitlines() or ["nothing"])[-1]
            raise ExpeditedError(f"the striker did not start; it said: {said}")
        yield run_dir / "striker.sock"
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def pod_for(daemon: PrivateContainerd, scenario: Scenario) -> Pod:
    """A pod in the place that the scenario wants, as kubelet arranges quality-of-service classes."""
    parent = f"{daemon.cgroup_root}/{'besteffort' if scenario.contended else 'ordinary'}"
    pod = daemon.cri.run_pod(PodSpec(name=scenario.name, cgroup_parent=f"{parent}/{scenario.name}"))
    if scenario.contended:
        directory, version = _cpu_directory(parent)
        # What kubelet gives the besteffort slice: the least there is
        name, value = ("cpu.weight", "1") if version == 2 else ("cpu.shares", "2")
        write(f"{directory}/{name}", value.encode())
    return pod


def stop_once(daemon: PrivateContainerd, scenario: Scenario, pod: Pod, *, expedited: bool) -> Stop:
    """Make the scenario's container, stop it with its grace, measure, remove it."""
    name = f"{scenario.name}-{secrets.token_hex(4)}"
    with run_striker(daemon) if expedited else nullcontext():
        container_id = daemon.cri.create_container(pod, ContainerSpec(HOG_IMAGE, scenario.command, name=name))
        try:
            daemon.cri.start_container(container_id)
            daemon.cri.wait_for_output(container_id, "READY")
            if scenario.quota_us:
                daemon.cri.limit_cpu(container_id, quota_us=scenario.quota_us)
            return _measured_stop(daemon, scenario, pod, container_id)
        finally:
            with suppress(ExpeditedError):
                daemon.cri.remove_container(container_id)


def _measured_stop(daemon: PrivateContainerd, scenario: Scenario, pod: Pod, container_id: str) -> Stop:
    directory, version = memory_directory(f"{pod.cgroup_parent}/{container_id}")
    neighbours: AbstractContextManager[None] = _busy_neighbours(daemon) if scenario.contended else nullcontext()
    with Meter(directory, version) as meter:
        with neighbours:
            if scenario.contended or scenario.quota_us:
                time.sleep(_SETTLE_SECONDS)
            began = time.monotonic()
            stopping = daemon.cri.begin_stop(container_id, scenario.grace_seconds)
            measured = meter.wait(PATIENCE_SECONDS)
        # With the neighbours gone, even one that was given up ends at once
        stopping.result()
    back, gone = measured.memory_back_at, measured.gone_at
    return Stop(
        anon_bytes=meter.anon_bytes,
        memory_back_seconds=PATIENCE_SECONDS if back is None else min(back - began, PATIENCE_SECONDS),
        gone_seconds=PATIENCE_SECONDS if gone is None else min(gone - began, PATIENCE_SECONDS),
        exit_code=daemon.cri.container(container_id).exit_code,
        capped=gone is None,
    )


@contextmanager
def _busy_neighbours(daemon: PrivateContainerd) -> Iterator[None]:
    """Two busy loops a core in a sibling of the besteffort cgroup, of ordinary weight."""
    directory, _ = _cpu_directory(f"{daemon.cgroup_root}/busy")
    directory.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [workload_binary("hog"), "--threads", str(2 * (os.cpu_count() or 1))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # Before it has threads: one that is in already takes them along
        preexec_fn=lambda: write(f"{directory}/cgroup.procs", b"%d" % os.getpid()),
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def memory_directory(cgroup: str) -> tuple[Path, int]:
    """Where the memory controller has this cgroup, and the version of that hierarchy.

    Raises:
        ExpeditedError: no memory controller here.
    """
    return _directory("memory", cgroup)


def _cpu_directory(cgroup: str) -> tuple[Path, int]:
    return _directory("cpu", cgroup)


def _directory(controller: str, cgroup: str) -> tuple[Path, int]:
    mounts = hierarchies()
    root = mounts.controllers.get(controller)
    if root is not None:
        return Path(root + cgroup), 1
    if mounts.unified is not None and controller in Path(mounts.unified, "cgroup.controllers").read_text().split():
        return Path(mounts.unified + cgroup), 2
    raise ExpeditedError(f"no cgroup hierarchy with the {controller} controller is mounted here: the demo needs it")

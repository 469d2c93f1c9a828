"""The plugin against a real containerd, by its socket and started by containerd itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from expedited.demo.cri import ContainerSpec, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE, import_workloads
from expedited.nri import session
from expedited.sighting import State
from expedited.teardown.cgroup import Cgroup
from support.waiting import wait_for

_LIFE = ["container_created", "container_starting", "container_started", "container_stopped", "container_removed"]


async def _connected(heard: Any, times: int = 1) -> None:
    await heard.until(lambda: heard.names.count("synchronize") >= times)


async def test_a_connection_brings_the_runtimes_name_and_all_that_runs(
    containerd: PrivateContainerd, make_pod: Any, make_container: Any, start_serving: Any, heard: Any
) -> None:
    annotations = {"expedited.io/mode": "observe"}
    pod = await asyncio.to_thread(make_pod, PodSpec(annotations=annotations))
    spec = ContainerSpec(HOG_IMAGE, name="main")
    hog = await asyncio.to_thread(make_container, "--bytes", "2M", pod=pod, spec=spec)

    start_serving(containerd.nri_socket)
    await _connected(heard)

    (first, runtime_name, version), (second, pods, containers) = heard.calls[:2]
    assert (first, second) == ("connected", "synchronize")
    assert runtime_name == "containerd"
    assert version in (await asyncio.to_thread(containerd.ctr, "version")).stdout
    listed = {one.id: one for one in pods}[pod.id]
    assert (listed.name, listed.uid, listed.namespace) == (pod.config.metadata.name, pod.uid, "expedited")
    assert listed.annotations["expedited.io/mode"] == "observe"
    assert Cgroup.of_process(listed.pid).path == f"{pod.cgroup_parent}/{pod.id}"
    main = {one.id: one for one in containers}[hog.id]
    assert (main.pod_id, main.name, main.pid, main.state) == (pod.id, "main", hog.pid, State.RUNNING)
    assert Cgroup.of_process(main.pid).path == hog.cgroup
    # The sandbox itself is no container
    assert pod.id not in {one.id for one in containers}


async def test_a_containers_whole_life_is_told_in_order(
    containerd: PrivateContainerd, make_pod: Any, start_serving: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the handler below may need more than it usually gets; this containerd waits for a minute
    monkeypatch.setattr(session, "START_AT_MOST_SECONDS", 30)
    start_serving(containerd.nri_socket)
    await _connected(heard)
    seen: dict[str, Any] = {}

    async def starting(pod: Any, container: Any) -> None:
        # containerd waits for this: the process is there, in its cgroup, and has not run the container's program yet
        state = containerd.runc_root / "k8s.io" / container.id / "state.json"
        seen["state file"] = await asyncio.to_thread(state.exists)
        seen["cgroup"] = await asyncio.to_thread(Cgroup.of_process, container.pid)
        seen["program"] = await asyncio.to_thread(Path(f"/proc/{container.pid}/cmdline").read_bytes)

    heard.starting = starting
    pod = await asyncio.to_thread(make_pod, PodSpec(annotations={"expedited.io/min-size": "1Mi"}))
    cri = containerd.cri
    container_id = await asyncio.to_thread(
        cri.create_container, pod, ContainerSpec(HOG_IMAGE, ("/hog", "--bytes", "2M"))
    )
    await asyncio.to_thread(cri.start_container, container_id)
    await asyncio.to_thread(cri.wait_for_output, container_id, "READY")
    pid = (await asyncio.to_thread(cri.container, container_id)).pid
    await asyncio.to_thread(cri.stop_container, container_id)
    await asyncio.to_thread(cri.remove_container, container_id)
    await asyncio.to_thread(cri.remove_pod, pod.id)
    await heard.until(lambda: "pod_removed" in heard.names)

    calls = heard.of(container_id)
    assert [name for name, _, _ in calls] == _LIFE
    for _, its_pod, container in calls:
        assert (its_pod.id, its_pod.uid, container.pod_id) == (pod.id, pod.uid, pod.id)
        assert its_pod.annotations["expedited.io/min-size"] == "1Mi"
    by_name = {name: container for name, _, container in calls}
    assert by_name["container_starting"].pid == by_name["container_started"].pid == pid
    assert by_name["container_starting"].state is State.CREATED
    assert by_name["container_started"].state is State.RUNNING
    assert seen["state file"]
    assert seen["cgroup"].path == f"{pod.cgroup_parent}/{container_id}"
    assert b"/hog" not in seen["program"].split(b"\0")
    of_pods = [name for name, *rest in heard.calls if len(rest) == 1 and getattr(rest[0], "id", "") == pod.id]
    assert of_pods == ["pod_started", "pod_stopped", "pod_removed"]


async def test_a_handler_that_never_ends_holds_up_no_pod(
    containerd: PrivateContainerd, make_container: Any, start_serving: Any, heard: Any
) -> None:
    heard.starting = lambda pod, container: asyncio.Event().wait()
    start_serving(containerd.nri_socket)
    await _connected(heard)

    with structlog.testing.capture_logs() as logged:
        hog = await asyncio.to_thread(make_container, "--bytes", "2M")
        await heard.until(lambda: "container_started" in heard.names)
        await asyncio.to_thread(containerd.cri.stop_container, hog.id)
        await heard.until(lambda: "container_stopped" in heard.names)

    assert [name for name, _, _ in heard.of(hog.id)] == _LIFE[:4]
    # It is still connected: a runtime drops a plugin that takes two seconds, this one after a minute
    assert "disconnected" not in heard.names
    assert session.START_AT_MOST_SECONDS <= 0.5
    assert [line["event"] for line in logged] == ["a container starts before the agent is ready for it"]


async def test_a_containerd_that_is_restarted_is_found_again(
    containerd: PrivateContainerd, make_container: Any, start_serving: Any, heard: Any
) -> None:
    hog = await asyncio.to_thread(make_container, "--bytes", "2M")
    start_serving(containerd.nri_socket)
    await _connected(heard)

    containerd.restart()  # in this thread: a daemon ends with the thread that started it
    await _connected(heard, times=2)

    assert heard.names[:5] == ["connected", "synchronize", "disconnected", "connected", "synchronize"]
    main = {one.id: one for one in heard.calls[4][2]}[hog.id]
    assert (main.pid, main.state) == (hog.pid, State.RUNNING)
    await asyncio.to_thread(containerd.cri.stop_container, hog.id)
    await heard.until(lambda: [name for name, _, _ in heard.of(hog.id)] == ["container_stopped"])


def _wait_collected(pid: int) -> None:
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"{pid} is not collected")


async def test_a_containerd_that_is_killed_is_found_again_without_what_ended_meanwhile(
    containerd: PrivateContainerd, make_container: Any, start_serving: Any, heard: Any
) -> None:
    stays, ends = await asyncio.to_thread(lambda: [make_container("--bytes", "2M") for _ in range(2)])
    start_serving(containerd.nri_socket)
    await _connected(heard)
    assert {stays.id, ends.id} <= {one.id for one in heard.calls[1][2]}

    containerd.kill()
    await heard.until(lambda: "disconnected" in heard.names)
    os.kill(ends.pid, 9)
    await asyncio.to_thread(_wait_collected, ends.pid)  # by its shim, which tells the new containerd
    containerd.start()
    await _connected(heard, times=2)

    listed = {one.id for one in heard.calls[-1][2]}
    assert stays.id in listed
    assert ends.id not in listed


# -- started by containerd ---------------------------------------------------------------------------------------------

_PLUGIN = """#!{python}
import asyncio, json, os, signal, sys
from expedited.nri import NriPlugin, serve

out = open({out!r}, "a", buffering=1)

def note(name, *what):
    print(json.dumps([name, *what]), file=out)

class Handlers:
    def __getattr__(self, name):
        def called(*what):
            note(name, *(getattr(each, "id", None) or str(each) for each in what))
        return called

    async def container_starting(self, pod, container):
        note("container_starting", pod.id, container.id)

async def main():
    note("began", sorted(os.environ), os.environ["NRI_PLUGIN_SOCKET"])
    plugin = NriPlugin(Handlers(), name="not-this", idx="99")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(plugin, "/nowhere/nri.sock", stop=stop)
    note("ended", plugin.name, plugin.idx)

asyncio.run(main())
"""


@pytest.fixture
def private_containerd() -> Iterator[PrivateContainerd]:
    """One for this test alone, with ``10-expedited`` among its pre-installed plugins."""
    if os.geteuid() != 0:
        pytest.skip("a private containerd needs root")
    daemon = PrivateContainerd(Path(tempfile.mkdtemp(prefix="expedited-")))
    daemon.nri_plugin_dir.mkdir(parents=True)
    script = daemon.nri_plugin_dir / "10-expedited"
    script.write_text(_PLUGIN.format(python=sys.executable, out=str(daemon.root / "heard")))
    script.chmod(0o755)
    with daemon:
        import_workloads(daemon)
        yield daemon


def _until_noted(daemon: PrivateContainerd, name: str) -> list[list[Any]]:
    give_up_at = time.monotonic() + 30
    while True:
        path = daemon.root / "heard"
        noted = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if name in [each[0] for each in noted]:
            return noted
        assert time.monotonic() < give_up_at, (noted, daemon.log_path.read_text()[-3000:])
        time.sleep(0.02)


def test_a_pre_installed_plugin_is_started_by_containerd_and_told_everything(
    private_containerd: PrivateContainerd,
) -> None:
    cri = private_containerd.cri
    pod = cri.run_pod()
    container_id = cri.create_container(pod, ContainerSpec(HOG_IMAGE, ("/hog", "--bytes", "2M")))
    cri.start_container(container_id)
    cri.wait_for_output(container_id, "READY")
    cri.stop_container(container_id)
    cri.remove_pod(pod.id)

    noted = _until_noted(private_containerd, "pod_removed")
    name, variables, descriptor = noted[0]
    assert name == "began"
    assert {"NRI_PLUGIN_IDX", "NRI_PLUGIN_NAME", "NRI_PLUGIN_SOCKET"} <= set(variables)
    assert descriptor == "3"
    assert noted[1][:2] == ["connected", "containerd"]
    assert noted[2] == ["synchronize", "()", "()"]
    assert noted[3:] == [
        ["pod_started", pod.id],
        *([step, pod.id, container_id] for step in _LIFE[:4]),
        ["pod_stopped", pod.id],
        ["container_removed", pod.id, container_id],
        ["pod_removed", pod.id],
    ]
    log = private_containerd.log_path.read_text()
    assert "expedited" in log  # that it was started
    assert not [line for line in log.splitlines() if "level=error" in line and "nri" in line.lower()]


def test_a_pre_installed_plugin_ends_with_its_containerd(private_containerd: PrivateContainerd) -> None:
    _until_noted(private_containerd, "synchronize")
    private_containerd.kill()  # not in order, so that nobody ends the plugin but the plugin itself
    assert _until_noted(private_containerd, "ended")[-1] == ["ended", "expedited", "10"]

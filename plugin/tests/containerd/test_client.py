"""The client against a real containerd: a private one, with real pods in it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog.testing

from expedited.containerd import (
    ContainerdClient,
    ContainerDelete,
    ContainerdError,
    Event,
    NotFoundError,
    TaskDelete,
    TaskExit,
    TaskStart,
)
from expedited.demo.cri import ContainerSpec, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE
from expedited.inventory import Inventory, Source, State
from expedited.settings import AgentSettings
from expedited.teardown.policy import Mode
from support.ctr import run_by_ctr

_E = TypeVar("_E")


@pytest.fixture
async def client(containerd: PrivateContainerd) -> AsyncIterator[ContainerdClient]:
    async with ContainerdClient(str(containerd.socket), "k8s.io") as one:
        yield one


class Listener:
    """Collects the events of a client from the moment that it is connected."""

    def __init__(self, client: ContainerdClient, on_connected: Callable[[], Awaitable[None]] | None = None) -> None:
        self.events: list[Event] = []
        self.connections = 0
        self._on_connected = on_connected
        self._task = asyncio.create_task(self._listen(client))

    async def _listen(self, client: ContainerdClient) -> None:
        async with aclosing(client.subscribe(self._connected)) as events:
            async for event in events:
                self.events.append(event)

    async def _connected(self) -> None:
        if self._on_connected is not None:
            await self._on_connected()
        self.connections += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                assert not self._task.done(), self._task.result()
                await asyncio.sleep(0.01)

    async def find(self, kind: type[_E], container_id: str) -> _E:
        def found() -> _E | None:
            of_kind = (event for event in self.events if isinstance(event, kind))
            return next((event for event in of_kind if event.container_id == container_id), None)  # type: ignore[attr-defined]

        await self.until(lambda: found() is not None)
        event = found()
        assert event is not None
        return event

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def listener(client: ContainerdClient) -> AsyncIterator[Listener]:
    one = Listener(client)
    await one.until(lambda: one.connections == 1)
    yield one
    await one.close()


async def test_the_version_is_that_of_the_daemon(client: ContainerdClient, containerd: PrivateContainerd) -> None:
    said = await asyncio.to_thread(containerd.ctr, "version")

    assert f"Version:  {await client.version()}\n" in said.stdout


async def test_a_pod_and_its_container_are_listed_with_who_they_are(
    client: ContainerdClient, make_pod: Any, make_container: Any
) -> None:
    spec = PodSpec(annotations={"expedited.io/mode": "observe", "other": "x"})
    pod = await asyncio.to_thread(make_pod, spec)
    hog = await asyncio.to_thread(make_container, "--bytes", "4M", pod=pod, spec=ContainerSpec(HOG_IMAGE, name="main"))

    listed = {one.id: one for one in await client.containers()}
    sandbox, main = listed[pod.id], listed[hog.id]

    for one in (sandbox, main):
        assert one.namespace == "k8s.io"
        assert one.sandbox_id == pod.id
        assert (one.pod_uid, one.pod_namespace) == (pod.uid, spec.namespace)
        assert one.pod_name == pod.config.metadata.name
    assert sandbox.sandbox
    assert not main.sandbox
    assert (sandbox.container_name, main.container_name) == ("", "main")
    assert sandbox.annotations == spec.annotations
    assert main.annotations is None
    assert await client.container(hog.id) == main


async def test_a_pod_without_kubelets_labels_is_known_all_the_same(
    client: ContainerdClient, make_pod: Any, make_container: Any
) -> None:
    nothing = dict.fromkeys(["io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"], "")
    pod = await asyncio.to_thread(make_pod, PodSpec(labels=nothing))
    spec = ContainerSpec(HOG_IMAGE, name="main", labels={**nothing, "io.kubernetes.container.name": ""})
    hog = await asyncio.to_thread(make_container, "--bytes", "1M", pod=pod, spec=spec)

    for one in (await client.container(pod.id), await client.container(hog.id)):
        assert (one.pod_name, one.pod_uid, one.pod_namespace) == (pod.config.metadata.name, pod.uid, "expedited")
    assert (await client.container(hog.id)).container_name == "main"


async def test_a_running_container_has_a_task(client: ContainerdClient, make_container: Any) -> None:
    hog = await asyncio.to_thread(make_container, "--bytes", "1M", "--children", "2")

    tasks = {task.container_id: task for task in await client.tasks()}

    assert (tasks[hog.id].pid, tasks[hog.id].state) == (hog.pid, State.RUNNING)
    assert tasks[hog.pod.id].state is State.RUNNING


async def test_a_container_of_another_namespace_is_found_there(
    client: ContainerdClient, containerd: PrivateContainerd
) -> None:
    await asyncio.to_thread(run_by_ctr, containerd, "by-ctr", "/hog", "--bytes", "1M", namespace="k8s.io")
    try:
        one = await client.container("by-ctr", "k8s.io")
        assert (one.sandbox, one.sandbox_id, one.pod_uid) == (False, "", "")
        assert one.annotations is not None
        assert "k8s.io" in await client.namespaces()
        assert await client.containers("nowhere") == []
    finally:
        await asyncio.to_thread(containerd.ctr, "task", "delete", "-f", "by-ctr", namespace="k8s.io")
        await asyncio.to_thread(containerd.ctr, "container", "delete", "by-ctr", namespace="k8s.io")


async def test_what_is_not_there_is_told_in_one_line(client: ContainerdClient) -> None:
    with pytest.raises(NotFoundError, match=r"^containerd: .*nobody.*not found$"):
        await client.container("nobody")


async def test_a_socket_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    async with ContainerdClient(f"{tmp_path}/none.sock", "k8s.io") as client:
        for ask in (client.version(), client.containers(), client.tasks()):
            with pytest.raises(ContainerdError, match=f"^containerd can't be reached at {tmp_path}/none.sock: .*$"):
                await ask


async def test_a_life_of_a_container_comes_as_events(
    listener: Listener, containerd: PrivateContainerd, make_container: Any
) -> None:
    hog = await asyncio.to_thread(make_container, "--bytes", "1M")
    assert await listener.find(TaskStart, hog.id) == TaskStart("k8s.io", hog.id, hog.pid)

    assert (await asyncio.to_thread(containerd.cri.exec_sync, hog.id, ("/hog", "--exit-after-ms", "1"))).exit_code == 0
    executed = await listener.find(TaskExit, hog.id)
    assert not executed.is_init
    listener.events.clear()

    await asyncio.to_thread(containerd.cri.stop_container, hog.id)
    ended = await listener.find(TaskExit, hog.id)
    assert ended.is_init
    assert ended == TaskExit("k8s.io", hog.id, hog.id)
    assert await listener.find(TaskDelete, hog.id) == TaskDelete("k8s.io", hog.id)
    assert (await asyncio.to_thread(containerd.cri.container, hog.id)).exit_code == 128 + signal.SIGKILL

    await asyncio.to_thread(containerd.cri.remove_container, hog.id)
    assert await listener.find(ContainerDelete, hog.id) == ContainerDelete("k8s.io", hog.id)


@pytest.mark.parametrize("end", ["restart", "kill"])
async def test_a_listener_outlives_the_daemon_and_lists_anew(
    client: ContainerdClient, containerd: PrivateContainerd, make_container: Any, end: str
) -> None:
    lists: list[set[str]] = []

    async def list_all() -> None:
        lists.append({one.id for one in await client.containers()})

    with structlog.testing.capture_logs() as lines:
        listener = Listener(client, list_all)
        await listener.until(lambda: listener.connections == 1)
        hog = await asyncio.to_thread(make_container, "--bytes", "1M")
        await listener.find(TaskStart, hog.id)
        assert hog.id not in lists[0]

        # Not in another thread: the daemon dies with the thread that started it.
        if end == "restart":
            containerd.restart()
        else:
            containerd.kill()
            await asyncio.sleep(1)  # so that it is tried in vain more than once
            containerd.start()
        await listener.until(lambda: listener.connections == 2)

        assert hog.id in lists[1]
        assert {task.container_id: task.pid for task in await client.tasks()}[hog.id] == hog.pid
        await asyncio.to_thread(containerd.cri.stop_container, hog.id)
        assert (await listener.find(TaskExit, hog.id)).is_init
        await listener.close()

    said = [(line["log_level"], line["event"]) for line in lines]
    assert [level for level, _ in said] == ["info", "warning", "info"]
    assert said[0][1].startswith("containerd ")
    assert said[1][1].endswith("; trying again")


async def test_an_absent_socket_is_told_once_and_awaited(tmp_path: Path, containerd: PrivateContainerd) -> None:
    socket = tmp_path / "c.sock"
    with structlog.testing.capture_logs() as lines:
        async with ContainerdClient(str(socket), "k8s.io") as client:
            listener = Listener(client)
            await listener.until(lambda: lines)
            await asyncio.sleep(1.0)  # several attempts
            assert [line["log_level"] for line in lines] == ["warning"]
            assert f"containerd can't be reached at {socket}" in lines[0]["event"]

            socket.symlink_to(containerd.socket)
            await listener.until(lambda: listener.connections == 1)
            assert [line["log_level"] for line in lines] == ["warning", "info"]
            await listener.close()


async def test_a_list_that_fails_after_connecting_is_asked_for_anew(client: ContainerdClient, make_pod: Any) -> None:
    await asyncio.to_thread(make_pod)
    asked = 0

    async def list_all() -> None:
        nonlocal asked
        asked += 1
        await client.container("nobody" if asked == 1 else (await client.containers())[0].id)

    with structlog.testing.capture_logs() as lines:
        listener = Listener(client, list_all)
        await listener.until(lambda: listener.connections == 1)
        await listener.close()

    assert asked == 2
    assert [line["log_level"] for line in lines] == ["info", "warning", "info"]


async def test_the_inventory_takes_in_what_containerd_has_and_lets_go_of_what_went(
    client: ContainerdClient, containerd: PrivateContainerd, make_pod: Any, make_container: Any
) -> None:
    inventory = Inventory(AgentSettings())
    pod = await asyncio.to_thread(make_pod, PodSpec(annotations={"expedited.io/mode": "observe"}))
    hog = await asyncio.to_thread(make_container, "--bytes", "4M", pod=pod)

    async def reconcile() -> None:
        at = asyncio.get_running_loop().time()  # the same clock as time.monotonic
        tasks = {task.container_id: task for task in await client.tasks()}
        sightings = [one.sighting(tasks.get(one.id)) for one in await client.containers()]
        inventory.reconcile(Source.CONTAINERD, sightings, at=at, runtime_namespace="k8s.io")

    await reconcile()
    known = inventory.find(hog.id[:12])
    assert (known.seen.pid, known.seen.state, known.policy.mode) == (hog.pid, State.RUNNING, Mode.OBSERVE)
    assert [one.id for one in inventory.by_pod(pod.uid)] == [hog.id, pod.id]
    cgroup = known.find_cgroup()
    assert cgroup is not None
    assert cgroup.path == hog.cgroup
    assert hog.pid in cgroup.pids()

    await asyncio.to_thread(containerd.cri.stop_container, hog.id)
    await reconcile()
    assert (inventory.find(hog.id).seen.state, inventory.find(hog.id).seen.pid) == (State.STOPPED, 0)

    await asyncio.to_thread(containerd.cri.remove_container, hog.id)
    await reconcile()
    assert inventory.get(hog.id) is None
    assert [one.id for one in inventory.by_pod(pod.uid)] == [pod.id]

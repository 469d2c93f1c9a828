"""What containerd tells of a container, as the inventory takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
import structlog.testing

from expedited.agent.sources import ContainerdSource
from expedited.containerd import (
    ContainerdClient,
    ContainerdError,
    Event,
    RuntimeContainer,
    RuntimeTask,
    TaskPaused,
    TaskResumed,
)
from expedited.inventory import Inventory, Sighting, Source, State
from expedited.settings import AgentSettings
from expedited.teardown.policy import Mode

MAIN = Sighting("c1", "k8s.io", pid=10, state=State.RUNNING)


@pytest.fixture
def inventory() -> Inventory:
    return Inventory(AgentSettings())


@pytest.fixture
async def source(inventory: Inventory) -> AsyncIterator[ContainerdSource]:
    async def gate(container_id: str) -> None: ...

    async with ContainerdClient("/nowhere/containerd.sock", "k8s.io") as client:
        yield ContainerdSource(client, inventory, gate=gate, told_all=lambda: None)


async def test_who_is_paused_and_resumed_keeps_its_process(inventory: Inventory, source: ContainerdSource) -> None:
    inventory.saw(Source.CONTAINERD, MAIN)

    await source._take(TaskPaused("k8s.io", "c1"))
    assert (inventory.find("c1").seen.state, inventory.find("c1").seen.pid) == (State.PAUSED, 10)

    await source._take(TaskResumed("k8s.io", "c1"))
    assert (inventory.find("c1").seen.state, inventory.find("c1").seen.pid) == (State.RUNNING, 10)


@pytest.mark.parametrize("event", [TaskPaused("k8s.io", "c1"), TaskResumed("k8s.io", "c1")], ids=["pause", "resume"])
async def test_a_pause_that_is_told_after_the_end_brings_nobody_back(
    inventory: Inventory, source: ContainerdSource, event: Event
) -> None:
    inventory.saw(Source.CONTAINERD, MAIN)
    inventory.exited(Source.NRI, "c1")
    await source._take(event)
    assert inventory.find("c1").seen.state is State.STOPPED

    inventory.forget("c1")
    await source._take(event)
    assert len(inventory) == 0


class _WithHungShims:
    """Answers what containerd knows by itself; the shims' side when it is let to, or not at all."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.hangs = True

    async def namespaces(self) -> list[str]:
        return ["k8s.io"]

    async def containers(self, namespace: str = "") -> list[RuntimeContainer]:
        return [
            RuntimeContainer("s1", namespace, True, "s1", "shop", "web", "u1", "", {"expedited.io/mode": "observe"}),
            RuntimeContainer("c1", namespace, False, "s1", "shop", "web", "u1", "main", None),
        ]

    async def tasks(self, namespace: str = "", *, timeout_seconds: float = 10.0) -> list[RuntimeTask]:
        await self.may_answer.wait()
        if self.hangs:
            raise ContainerdError("containerd did not answer")
        return [RuntimeTask("c1", 7, State.RUNNING)]


async def test_shims_that_hang_keep_neither_annotations_nor_events_back(inventory: Inventory) -> None:
    async def gate(container_id: str) -> None: ...

    client = _WithHungShims()
    source = ContainerdSource(cast(ContainerdClient, client), inventory, gate=gate, told_all=lambda: None)
    inventory.saw(Source.NRI, Sighting("s1", "k8s.io", pid=6, state=State.RUNNING))
    async with asyncio.timeout(30):
        await source._list()  # while it goes on, the subscription has no event
    assert source.listed.is_set()
    assert inventory.find("c1").policy.mode is Mode.OBSERVE
    assert inventory.find("c1").seen.state is State.UNKNOWN
    assert (inventory.find("s1").seen.state, inventory.find("s1").seen.pid) == (State.RUNNING, 6)

    client.may_answer.set()
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            await source._list()
            assert source._asking is not None
            await source._asking
    assert [line["event"] for line in logged] == ["which containers run is not known but from events"]
    assert inventory.find("c1").seen.state is State.UNKNOWN

    client.hangs = False
    await source._list()
    await source._asking
    assert (inventory.find("c1").seen.state, inventory.find("c1").seen.pid) == (State.RUNNING, 7)
    assert inventory.find("s1").seen.state is State.STOPPED

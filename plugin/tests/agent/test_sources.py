"""What containerd tells of a container, as the inventory takes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from expedited.agent.sources import ContainerdSource
from expedited.containerd import ContainerdClient, Event, TaskPaused, TaskResumed
from expedited.inventory import Inventory, Sighting, Source, State
from expedited.settings import AgentSettings

MAIN = Sighting("c1", "k8s.io", pid=10, state=State.RUNNING)


@pytest.fixture
def inventory() -> Inventory:
    return Inventory(AgentSettings())


@pytest.fixture
async def source(inventory: Inventory) -> AsyncIterator[ContainerdSource]:
    async def gate(container_id: str) -> None: ...

    async with ContainerdClient("/nowhere/containerd.sock", "k8s.io") as client:
        yield ContainerdSource(client, inventory, gate=gate, listed=lambda: None)


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

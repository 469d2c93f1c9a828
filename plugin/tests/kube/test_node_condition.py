from __future__ import annotations

from typing import Any

from expedited.kube import ApiServer
from expedited.kube.node_condition import CONDITION, NodeCondition


class _Node:
    """The condition's keeper, and how the striker is."""

    def __init__(self, api: Any, patience_seconds: float = 0.0) -> None:
        self.striker = "ok"
        self.api = api
        self.client = ApiServer(api.access())
        self.keeper = NodeCondition(self.client, "node-1", lambda: self.striker, patience_seconds=patience_seconds)

    def conditions(self) -> dict[str, str]:
        node = self.api.store.nodes["node-1"]
        return {each["type"]: each["status"] for each in node["status"]["conditions"]}

    def patches(self) -> int:
        return len(self.api.asked("PATCH", "/api/v1/nodes/node-1/status"))


async def test_a_node_that_works_has_no_condition(api: Any) -> None:
    node = _Node(api)
    await node.keeper.look()
    await node.keeper.look()
    assert node.conditions() == {"Ready": "True"}
    assert node.patches() == 0
    node.client.close()


async def test_it_is_set_once_when_kills_are_not_caught_and_taken_back_once(api: Any) -> None:
    node = _Node(api)
    node.striker = "no kill gate"
    for _ in range(3):
        await node.keeper.look()
    assert node.conditions() == {"Ready": "True", CONDITION: "True"}
    assert node.patches() == 1
    node.striker = "ok"
    for _ in range(3):
        await node.keeper.look()
    assert node.conditions() == {"Ready": "True", CONDITION: "False"}
    assert node.patches() == 2
    node.client.close()


async def test_a_striker_that_is_replaced_is_no_problem_of_the_node(api: Any) -> None:
    node = _Node(api, patience_seconds=3600)
    node.striker = "connection lost"
    await node.keeper.look()
    assert node.patches() == 0
    node.client.close()


async def test_what_an_earlier_agent_has_set_is_taken_back(api: Any) -> None:
    before = _Node(api)
    await before.keeper.tell("the striker can't work here")
    before.client.close()
    node = _Node(api)
    await node.keeper.look()
    assert node.conditions()[CONDITION] == "False"
    node.client.close()

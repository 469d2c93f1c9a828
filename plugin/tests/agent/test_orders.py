"""Whom a strike of a pod reaches, and in which order, with a striker that refuses some of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from expedited.agent.orders import Orders
from expedited.agent.striker import StrikerKeeper
from expedited.api.backend import Target
from expedited.errors import ExpeditedError, UsageError
from expedited.inventory import Inventory, Sighting, Source, State
from expedited.settings import AgentSettings
from expedited.striker.link import StrikerUnreachable
from expedited.teardown.policy import Mode, Policy
from expedited.teardown.report import Outcome, Report

MakeOrders = Callable[..., tuple[Orders, list[str]]]


class _Striker:
    """Answers as the keeper of a striker does."""

    def __init__(self, inventory: Inventory, refusals: dict[str, Exception]) -> None:
        self.asked: list[str] = []
        self._inventory = inventory
        self._refusals = refusals

    async def ask(self, do: str, *, timeout_seconds: float, **fields: Any) -> dict[str, Any]:
        name = fields["id"]
        self.asked.append(name)
        if name in self._refusals:
            raise self._refusals[name]
        self._inventory.exited(Source.CONTAINERD, name)
        report = Report(
            container_id=name,
            cgroup="/",
            trigger="api",
            mode="strike",
            outcome=Outcome.STRUCK,
            reason="",
            started_at=0.0,
        )
        return {"is": "report", "report": json.loads(json.dumps(report.to_json()))}


@pytest.fixture
def make_orders() -> MakeOrders:
    """``make_orders(id=error, ...) -> (Orders, whom it has asked to strike)``: a pod of a, b and its sandbox s."""

    def make(**refusals: Exception) -> tuple[Orders, list[str]]:
        inventory = Inventory(AgentSettings())
        for name in ("a", "b", "s"):
            inventory.saw(
                Source.CONTAINERD,
                Sighting(
                    name, pod_uid="u", pod_namespace="shop", pod_name="web", sandbox_id="s", sandbox=name == "s",
                    state=State.RUNNING,
                ),
            )  # fmt: skip
        striker = _Striker(inventory, refusals)
        return Orders(inventory, striker, Policy()), striker.asked  # type: ignore[arg-type]

    return make


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_the_sandbox_goes_last(make_orders: MakeOrders) -> None:
    orders, asked = make_orders()
    reports = await orders.strike(Target(pod="shop/web"), {})
    assert sorted(asked[:2]) == ["a", "b"]
    assert [report.container_id for report in reports][2:] == asked[2:] == ["s"]


@pytest.mark.parametrize("refused", ["a", "s"])
async def test_what_can_be_struck_of_a_pod_is(make_orders: MakeOrders, logged: list[Any], refused: str) -> None:
    orders, asked = make_orders(**{refused: UsageError(f"{refused}: a stop of it is in progress already")})
    reports = await orders.strike(Target(pod="u"), {})
    assert sorted(asked) == ["a", "b", "s"]
    assert {report.container_id for report in reports} == {"a", "b", "s"}
    (failed,) = [report for report in reports if report.outcome is Outcome.FAILED]
    assert (failed.container_id, failed.reason) == (refused, f"{refused}: a stop of it is in progress already")
    assert [line["why"] for line in logged] == [f"{refused}: a stop of it is in progress already"]


async def test_a_pod_of_which_nothing_can_be_struck_is_an_error(make_orders: MakeOrders) -> None:
    orders, _ = make_orders(a=ExpeditedError("no a"), b=ExpeditedError("no b"), s=ExpeditedError("no s"))
    with pytest.raises(ExpeditedError, match=r"^no a$"):
        await orders.strike(Target(pod="u"), {})


async def test_a_pod_that_has_stopped_already_is_an_error(make_orders: MakeOrders) -> None:
    orders, asked = make_orders()
    for name in ("a", "b", "s"):
        orders._inventory.exited(Source.NRI, name)
    with pytest.raises(ExpeditedError, match=r"^pod u: all of it has stopped already$"):
        await orders.strike(Target(pod="u"), {})
    assert asked == []


async def test_a_default_is_never_told_without_the_exceptions_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    keeper = StrikerKeeper(AgentSettings(), connected=lambda status: None, heard=lambda message: None)
    monkeypatch.setattr(keeper, "tell", lambda do, **fields: told.append(fields))
    off = Policy(mode=Mode.OFF)
    keeper.tell_policies({f"c{number}": off for number in range(201)}, default=Policy())
    keeper.tell_policies({}, default=Policy())
    keeper.tell_policies({"c": off})
    keeper.tell_policies({})
    sizes = [(len(fields["containers"]), fields.get("replace", False), "default" in fields) for fields in told]
    assert sizes == [(200, True, True), (1, False, False), (0, True, True), (1, False, False)]


async def test_without_a_striker_nothing_is_struck() -> None:
    keeper = StrikerKeeper(AgentSettings(), connected=lambda status: None, heard=lambda message: None)
    with pytest.raises(StrikerUnreachable, match="there is no striker now"):
        await Orders(Inventory(AgentSettings()), keeper, Policy()).strike(Target(cgroup="/a"), {})

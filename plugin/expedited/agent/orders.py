"""Strikes that somebody asks for: a container, a cgroup, or a pod in the order in which its parts have to go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import structlog

from expedited.agent.striker import StrikerKeeper
from expedited.api.backend import Target
from expedited.errors import ExpeditedError
from expedited.inventory import Inventory, State
from expedited.teardown.policy import Mode, Policy
from expedited.teardown.report import Outcome, Report

__all__ = ["Orders"]

#: A strike answers at its own deadline; the answer then still has to come.
_ANSWER_SLACK_SECONDS = 5.0
#: How long a pod's sandbox is left alone until the runtime has taken note of its containers' ends.
_NOTED_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class Orders:
    """Has the striker strike.

    Args:
        inventory: Knows what a target is made of.
        striker: Strikes.
        default: The policy of what the inventory does not know.
    """

    def __init__(self, inventory: Inventory, striker: StrikerKeeper, default: Policy) -> None:
        self._inventory = inventory
        self._striker = striker
        self._default = default

    async def strike(self, target: Target, overrides: dict[str, Any]) -> Sequence[Report]:
        """Strike a target, with these fields of its policy changed; a report for each cgroup.

        Of a pod those that can be struck are, whatever becomes of the others, whose reports say FAILED.

        Raises:
            ExpeditedError: there is no such target, or it must not be struck, or there is no striker; of a pod: nothing of it
                could be struck.
        """
        if target.cgroup:
            return [await self._strike_one(overrides, cgroup=target.cgroup)]
        if target.container_id:
            return [await self._strike_one(overrides, id=self._inventory.find(target.container_id).id)]
        members = [known for known in self._inventory.by_pod(target.pod) if known.seen.state is not State.STOPPED]
        if not members:
            raise ExpeditedError(f"pod {target.pod}: all of it has stopped already")
        containers = [known.id for known in members if not known.sandbox]
        reports, refused = await self._strike_all(overrides, containers)
        # The sandbox holds the pod's namespaces: it goes when nobody is left in them. With it goes the shim that serves
        # them all, and a runtime that has not taken note of their ends until then fails the stop of the pod.
        sandboxes = [known.id for known in members if known.sandbox]
        if sandboxes:
            await self._wait_noted([report.container_id for report in reports])
        more, also_refused = await self._strike_all(overrides, sandboxes)
        refused |= also_refused
        if refused and not reports and not more:
            raise next(iter(refused.values()))
        for container_id, problem in refused.items():
            _log.warning("a part of a pod was not struck", pod=target.pod, id=container_id, why=str(problem))
        return [*reports, *more, *(_failed(container_id, problem) for container_id, problem in refused.items())]

    async def _strike_all(
        self, overrides: dict[str, Any], ids: Sequence[str]
    ) -> tuple[list[Report], dict[str, ExpeditedError]]:
        """At once; the reports there are, and why there are no others, by the container's id."""
        strikes = (self._strike_one(overrides, id=each) for each in ids)
        said = await asyncio.gather(*strikes, return_exceptions=True)
        for one in said:
            if isinstance(one, BaseException) and not isinstance(one, ExpeditedError):
                raise one
        reports = [one for one in said if isinstance(one, Report)]
        return reports, {each: one for each, one in zip(ids, said, strict=True) if isinstance(one, ExpeditedError)}

    async def _wait_noted(self, ids: Sequence[str]) -> None:
        give_up_at = time.monotonic() + _NOTED_SECONDS
        while time.monotonic() < give_up_at:
            left = [known for known in map(self._inventory.get, ids) if known and known.seen.state is not State.STOPPED]
            if not left:
                return
            await asyncio.sleep(0.02)

    async def _strike_one(self, overrides: dict[str, Any], **target: str) -> Report:
        deadline = overrides.get("deadline_seconds", self._default.deadline_seconds)
        known = self._inventory.get(target.get("id", ""))
        if known is not None:
            deadline = max(deadline, known.policy.deadline_seconds)
        answer = await self._striker.ask(
            "strike", policy=overrides, trigger="api", timeout_seconds=deadline + _ANSWER_SLACK_SECONDS, **target
        )
        return Report.from_json(answer["report"])


def _failed(container_id: str, problem: ExpeditedError) -> Report:
    return Report(
        container_id=container_id,
        cgroup="",
        trigger="api",
        mode=str(Mode.STRIKE),
        outcome=Outcome.FAILED,
        reason=str(problem),
        started_at=time.time(),
    )

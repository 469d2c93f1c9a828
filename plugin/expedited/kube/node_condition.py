"""A condition of the node, only while the agent can't do its main job there: kills are not caught.

The custom of node-problem-detector: what passes is an Event, what stays is a condition, True when there is a problem.
Off unless asked for, as it needs `patch` on nodes/status, which the rest does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

import structlog

from expedited.kube.api_server import ApiServer
from expedited.kube.errors import strange
from expedited.kube.patience import Patience

__all__ = ["CONDITION", "NodeCondition"]

CONDITION = "MemoryReturnUnavailable"
# A striker that is replaced, or a kernel that is busy, is no problem of the node's
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class NodeCondition:
    """Sets the condition and takes it back.

    Args:
        api: Where to.
        node_name: The node's name in Kubernetes.
        striker_state: ``ok``, or why kills are not caught.
        patience_seconds: How long that has to last.
        look_seconds: How often to look.
    """

    def __init__(
        self,
        api: ApiServer,
        node_name: str,
        striker_state: Callable[[], str],
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._api = api
        self._path = f"/api/v1/nodes/{quote(node_name)}"
        self._striker_state = striker_state
        self._patience_seconds = patience_seconds
        self._look_seconds = look_seconds
        self._well_at = time.monotonic()
        self._set: bool | None = None  # whether the node has it; None: not known yet

    async def run(self) -> None:
        """Until cancelled."""
        patience = Patience()
        while True:
            try:
                await self.look()
                patience.renew()
                await asyncio.sleep(self._look_seconds)
            except Exception as problem:
                said = strange(problem)
                _log.debug("Kubernetes: the node's condition could not be told", why=str(said))
                await asyncio.sleep(patience.after(said))

    async def look(self) -> None:
        """Set it or take it back, if that is due.

        Raises:
            KubernetesError: the API server could not be told.
        """
        state, now = self._striker_state(), time.monotonic()
        if state == "ok":
            self._well_at = now
        if self._set is None:
            self._set = await self._is_set()
        broken = now - self._well_at >= self._patience_seconds if state != "ok" else False
        if broken and not self._set:
            await self.tell(state)
        elif state == "ok" and self._set:
            await self.tell("")

    async def tell(self, why: str) -> None:
        """Kills are not caught, and why; empty: they are again.

        Raises:
            KubernetesError: the API server could not be told.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": CONDITION,
            "status": "True" if why else "False",
            "reason": "KillsNotCaught" if why else "KillsCaught",
            "message": why or "containers that are killed give their memory back at once",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        await self._api.patch(f"{self._path}/status", {"status": {"conditions": [condition]}})
        self._set = bool(why)

    async def _is_set(self) -> bool:
        """One that an earlier agent has set is ours to take back."""
        node = await self._api.get(self._path)
        conditions = node.get("status", {}).get("conditions") or ()
        return any(each.get("type") == CONDITION and each.get("status") == "True" for each in conditions)

"""The pods of this node: those that are about to go, as early as the API server knows, and what their annotations are now.

One watch with the field selector spec.nodeName: nothing of other nodes comes here. It begins with a list of metadata
from the API server's own cache (resourceVersion=0: a list from etcd would read every pod of the cluster there), goes on
from where it broke off, and lists anew only when the server does not remember so far back (410).

What is seen: deletion, and with it drain, preemption, taints, rollouts (metadata.deletionTimestamp); and the condition
DisruptionTarget, which kubelet sets before it kills for node pressure (kubernetes pkg/kubelet/eviction).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import structlog

from expedited.kube.api_server import METADATA_ONLY, ApiServer
from expedited.kube.errors import ExpiredError, KubernetesError, UnreachableError, strange
from expedited.kube.patience import Patience

__all__ = ["PodWatch"]

_PODS = "/api/v1/pods"
# The server ends a watch after so long, each node's at another time
_WATCH_SECONDS = (300, 600)
_SHORT_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class PodWatch:
    """Keeps one watch up.

    Args:
        api: Whom to ask.
        node_name: The node's name in Kubernetes.
        leaving: Called once for each pod that goes for good, with its uid and, in a word, why.
        annotated: Called with a pod's uid and annotations whenever it may have others; with None when it is not there any more.

    Attributes:
        state: ``ok``, or in a few words why not.
        connections: How often a watch has begun.
        gone_for_good: The uids that ``leaving`` was called with and that the API server still has.
    """

    def __init__(
        self,
        api: ApiServer,
        node_name: str,
        leaving: Callable[[str, str], None],
        annotated: Callable[[str, Mapping[str, str] | None], None],
    ) -> None:
        self.state = "not connected"
        self.connections = 0
        self.gone_for_good: set[str] = set()
        self._api = api
        self._selector = f"spec.nodeName={node_name}"
        self._leaving = leaving
        self._annotated = annotated
        self._here: set[str] = set()  # uids
        self._version = ""  # up to where everything is known; empty: nothing is

    async def run(self) -> None:
        """Until cancelled."""
        patience = Patience()
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow(patience)
                await asyncio.sleep(random.uniform(0, 1))
            except ExpiredError:
                self._version = ""
                await asyncio.sleep(random.uniform(0, 1))
            except Exception as problem:
                if not isinstance(problem, KubernetesError):
                    self._version = ""  # an object without what every object has, say: nothing of it is to be relied on
                said = strange(problem)
                self._tell(str(said))
                await asyncio.sleep(patience.after(said))

    async def _list(self) -> None:
        """Who is here, and who is leaving already."""
        query = urlencode({"fieldSelector": self._selector, "resourceVersion": "0"})
        answer = await self._api.get(f"{_PODS}?{query}", accept=METADATA_ONLY)
        items = answer.get("items") or []
        here = {item["metadata"]["uid"] for item in items}
        for uid in self._here - here:
            self._is_gone(uid)
        for item in items:
            self._look_at(item)
        self._version = answer["metadata"]["resourceVersion"]

    async def _follow(self, patience: Patience) -> None:
        query = urlencode(
            {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "fieldSelector": self._selector,
                "resourceVersion": self._version,
                "timeoutSeconds": random.randint(*_WATCH_SECONDS),
            }
        )
        began, heard = time.monotonic(), False
        async for event in self._api.watch(f"{_PODS}?{query}"):
            kind, obj = event["type"], event["object"]
            match kind:
                case "BEGUN":
                    self.connections += 1
                    self._tell("ok")
                    continue
                case "ADDED" | "MODIFIED":
                    self._look_at(obj)
                case "DELETED":
                    self._look_at(obj)  # with no grace there was no word before
                    self._is_gone(obj["metadata"]["uid"])
                case _:
                    pass  # BOOKMARK: nothing but a newer version
            self._version = obj["metadata"]["resourceVersion"]
            heard = True
            patience.renew()
        if not heard and time.monotonic() - began < _SHORT_SECONDS:
            # A server that is draining, or a proxy: every node that asks again at once would be the last straw
            raise UnreachableError("the API server ended the watch as soon as it had begun")

    def _look_at(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        uid, why = metadata["uid"], _why_leaving(pod)
        self._here.add(uid)
        self._annotated(uid, metadata.get("annotations") or {})
        if why and uid not in self.gone_for_good:
            self.gone_for_good.add(uid)
            _log.debug("a pod is leaving", pod=f"{metadata['namespace']}/{metadata['name']}", why=why)
            self._leaving(uid, why)

    def _is_gone(self, uid: str) -> None:
        self._here.discard(uid)
        self.gone_for_good.discard(uid)
        self._annotated(uid, None)

    def _tell(self, state: str) -> None:
        if state == self.state:
            return
        if state == "ok":
            _log.info("Kubernetes: the pods of this node are watched")
        elif self.state in ("ok", "not connected"):
            _log.warning("Kubernetes: pods that leave, or are annotated anew, are not seen, and Events wait", why=state)
        self.state = state


def _why_leaving(pod: dict[str, Any]) -> str:
    """Empty: it stays."""
    if pod["metadata"].get("deletionTimestamp"):
        return "deleted"
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason") or "disrupted")
    return ""

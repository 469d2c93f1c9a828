"""A pod is deleted beside pods that burn the CPU, and its memory is watched: what the cases of deletion share."""

from __future__ import annotations

import time
from dataclasses import dataclass

from node import MemoryWatch, Node
from pods import Pods, hog_pod, wait_for

__all__ = ["MODES", "Deletion", "burners", "delete"]

MODES = ["observe", "strike"]
BURNERS = 4


@dataclass(frozen=True)
class Deletion:
    """How one went.

    Attributes:
        began: When it was asked for, in seconds since the epoch.
        back_seconds: From the end of the grace period until the memory was back.
        gone_seconds: Until the pod had no process.
    """

    began: float
    back_seconds: float | None
    gone_seconds: float | None


def burners(pods: Pods) -> None:
    """Pods that would use all of the CPU, in the class above that of the victims."""
    names = [f"burner-{number}" for number in range(BURNERS)]
    for name in names:
        pods.make(hog_pod(name, "--threads", "1", requests={"cpu": "10m", "memory": "10Mi"}, mode="off"))
    pods.ready(*names)


def delete(pods: Pods, node: Node, name: str, uid: str, grace: int) -> Deletion:
    """Delete it and wait until its memory is back and its last process has left."""
    watch = MemoryWatch(node, node.pod_cgroup(uid))
    began = time.time()
    pods.delete(name, grace)
    decided = time.time() + grace
    try:
        wait_for("the memory is back", lambda: watch.back_at(decided), 300)
        wait_for("the pod has no process", lambda: watch.gone_at(decided), 300)
    finally:
        watch.stop()
    back, gone = watch.back_at(decided), watch.gone_at(decided)
    return Deletion(began, back and back - decided, gone and gone - decided)

"""A container ends beside pods that burn the CPU, and its memory is watched: what the cases share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from node import MemoryWatch, Node
from pods import Pods, hog_pod, wait_for

__all__ = ["MODES", "Ending", "burners", "delete", "follow"]

MODES = ["observe", "strike"]
BURNERS = 4


@dataclass(frozen=True)
class Ending:
    """How it went; moments are in seconds since the epoch.

    Attributes:
        began: Before its cause.
        asked: When what causes it had been asked for.
        back_at: When 95% of the anonymous memory was free.
        gone_at: When the last process had left.
    """

    began: float
    asked: float
    back_at: float
    gone_at: float

    def since(self, moment: float) -> tuple[float, float]:
        """Seconds from there until the memory was back, and until the last process had left."""
        return self.back_at - moment, self.gone_at - moment


def burners(pods: Pods, cpu: str = "40m") -> None:
    """Pods that use all of the CPU, in the class above that of the victims; with them the node is booked out.

    Args:
        pods: Where to make them.
        cpu: What each asks for; less, where another pod of the case asks for the rest.
    """
    names = [f"burner-{number}" for number in range(BURNERS)]
    for name in names:
        pods.make(hog_pod(name, "--threads", "1", requests={"cpu": cpu, "memory": "10Mi"}, mode="off"))
    pods.ready(*names)


def follow(node: Node, cgroups: Sequence[Path], cause: Callable[[], object], seconds: float = 300) -> Ending:
    """Watch these cgroups from before the cause of their end until nothing is left in any of them."""
    watch = MemoryWatch(node, cgroups)
    try:
        began = time.time()
        cause()
        asked = time.time()
        back = wait_for("the memory is back", lambda: watch.back_at(began), seconds)
        gone = wait_for("no process is left", lambda: watch.gone_at(began), seconds)
    finally:
        watch.stop()
    return Ending(began, asked, back, gone)


def delete(pods: Pods, node: Node, name: str, uid: str, grace: int) -> tuple[Ending, float]:
    """Delete a pod; also when its grace is over."""
    ending = follow(node, [node.pod_cgroup(uid)], lambda: pods.delete(name, grace))
    return ending, ending.asked + grace

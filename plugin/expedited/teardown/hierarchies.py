"""Where the cgroup file systems are mounted: version 2, version 1, or a mixture of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

__all__ = ["Hierarchies", "hierarchies"]


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where the cgroup file systems are mounted: ``unified`` for version 2, ``controllers`` by name for version 1."""

    unified: str | None
    controllers: Mapping[str, str]

    def root_of(self, directory: str) -> str | None:
        """The mount point that ``directory`` lies below (or is)."""
        roots = {self.unified, *self.controllers.values()} - {None}
        inside = [root for root in roots if root and (directory == root or directory.startswith(root + "/"))]
        return max(inside, key=len, default=None)


@cache
def hierarchies() -> Hierarchies:
    """Read the mounted hierarchies from /proc/self/mountinfo, once (proc_pid_mountinfo(5))."""
    unified = None
    controllers: dict[str, str] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            mount, _, source = line.partition(" - ")
            kind, _, rest = source.partition(" ")
            if kind not in ("cgroup", "cgroup2"):
                continue
            _, _, _, root, point = mount.split(" ")[:5]
            bind_mount = root != "/" and not root.startswith("/..")
            if bind_mount and kind == "cgroup2" and unified is not None:
                continue  # a bind mount of one cgroup is no place to find others from, unless it is all there is
            if kind == "cgroup2":
                unified = unified or point
            else:
                for option in rest.split()[-1].split(","):
                    if option not in ("rw", "ro"):
                        controllers.setdefault(option, point)
    return Hierarchies(unified, controllers)

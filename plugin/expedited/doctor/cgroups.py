"""What the cgroup file systems offer the strike."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expedited.doctor.child import WAITS, child
from expedited.doctor.finding import Area, Finding, Level
from expedited.teardown.boost import DYING_PRIORITY
from expedited.teardown.hierarchies import Hierarchies, hierarchies

__all__ = ["look"]

_WANTED = ("memory", "cpu", "cpuset", "pids")
_LACK_COSTS = {
    "memory": "no figures and no dropping of page cache",
    "cpu": "no lifting of quota and weight",
    "cpuset": "no lifting of CPU sets",
    "pids": "members are listed from another hierarchy",
}
# The least real-time budget, in microseconds of a second, that a boost is worth
_LEAST_BUDGET_US = 30_000
_REMOVAL_SECONDS = 1.0


def look() -> Iterator[Finding]:
    """Version, controllers, cgroup.kill, dropping of page cache, and real-time priority for the dying."""
    mounts = hierarchies()
    if mounts.unified is None and not mounts.controllers:
        yield _version("none is mounted here", Level.BROKEN)
        return
    # What containers are in: where version 1 has any of these, its hierarchies hold them (see teardown.cgroup).
    legacy = any(name in mounts.controllers for name in ("memory", "pids", "freezer", "cpu"))
    yield _version(_describe(mounts, legacy), Level.DEGRADED if legacy else Level.OK)
    yield _controllers(mounts, legacy)
    root = mounts.controllers.get("cpu") if legacy else mounts.unified
    with _scratch(root) as directory:
        yield _writable(root, directory)
        yield _kill(mounts, legacy, directory)
        yield _page_cache(mounts, legacy, directory)
        yield _realtime(directory, legacy)


def _version(found: str, level: Level) -> Finding:
    return Finding(
        Area.CGROUPS,
        "version",
        found,
        level,
        "without version 2 there is no cgroup.kill: forks are held by the freezer, and killed one by one",
        "boot with systemd.unified_cgroup_hierarchy=1; in a container, mount the host's /sys/fs/cgroup",
    )


def _describe(mounts: Hierarchies, legacy: bool) -> str:
    if not legacy:
        return f"2, at {mounts.unified}"
    return "1, and containers are in it; 2 is mounted beside it" if mounts.unified else "1"


def _controllers(mounts: Hierarchies, legacy: bool) -> Finding:
    there = set(mounts.controllers)
    if not legacy:
        there = set(Path(f"{mounts.unified}/cgroup.controllers").read_text().split())
    missing = [name for name in _WANTED if name not in there]
    having = " ".join(name for name in _WANTED if name in there) or "none"
    return Finding(
        Area.CGROUPS,
        "controllers",
        f"{having}; missing: {' '.join(missing)}" if missing else having,
        Level.DEGRADED if missing else Level.OK,
        "; ".join(_LACK_COSTS[name] for name in missing or _WANTED),
        "a kernel that has them; no cgroup_disable= on its command line; kubelet needs them, too",
    )


def _writable(root: str | None, directory: str | None) -> Finding:
    return Finding(
        Area.CGROUPS,
        "writable",
        f"{root}" if directory else f"not for us: {root}",
        Level.OK if directory else Level.DEGRADED,
        "no boost of the dying, no cgroup.kill, no dropping of page cache; memory is reaped all the same",
        "as root; in a pod, mount the host's /sys/fs/cgroup and not read-only",
    )


def _kill(mounts: Hierarchies, legacy: bool, directory: str | None) -> Finding:
    # Linux kernel commit 661ee6280931 ("cgroup: introduce cgroup.kill") (in v5.14)
    if legacy:
        frozen = "freezer" in mounts.controllers
        found = "version 1 has none: " + ("its freezer is used" if frozen else "and there is no freezer")
        level = Level.OK if frozen else Level.DEGRADED
    elif _offers(mounts.unified, directory, "cgroup.kill"):
        found, level = "there", Level.OK
    else:
        found, level = "not in this kernel", Level.DEGRADED
    return Finding(
        Area.CGROUPS,
        "cgroup.kill",
        found,
        level,
        "a fork bomb is swept again and again until it is empty",
        "Linux 5.14 or later, cgroup version 2",
    )


def _page_cache(mounts: Hierarchies, legacy: bool, directory: str | None) -> Finding:
    # Linux kernel commit 94968384dde1 ("memcg: introduce per-memcg reclaim interface") (in v5.19)
    root, name = (
        (mounts.controllers.get("memory"), "memory.force_empty") if legacy else (mounts.unified, "memory.reclaim")
    )
    there = _offers(root, directory, name)
    return Finding(
        Area.CGROUPS,
        "page cache",
        f"can be dropped, by {name}" if there else f"can't be dropped: no {name}",
        Level.OK if there else Level.DEGRADED,
        "clean file pages that only the victim used stay charged to its pod, and count as used",
        "cgroup version 2 with the memory controller, Linux 5.19 or later",
    )


def _offers(root: str | None, directory: str | None, name: str) -> bool:
    """Whether cgroups below ``root`` have such a file; some are not in the root itself."""
    if root is None:
        return False
    places = [root, *([directory] if directory else [])]
    with suppress(OSError), os.scandir(root) as entries:
        places += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any(Path(place, name).exists() for place in places)


def _realtime(directory: str | None, legacy: bool) -> Finding:
    if directory is None:
        found, level = "not tried: no cgroup can be made", Level.UNKNOWN
    else:
        found, level = _try_realtime(directory, legacy)
    return Finding(
        Area.CGROUPS,
        "boost",
        found,
        level,
        "the dying stay behind their weight and quota, which are lifted: parents' limits still hold them",
        "CAP_SYS_NICE; a kernel without RT_GROUP_SCHED, or with a budget to lend (version 1 only)",
    )


def _try_realtime(directory: str, legacy: bool) -> tuple[str, Level]:
    """Make a process of another cgroup real-time, as is done to the dying."""
    with child(WAITS) as process:
        try:
            Path(directory, "cgroup.procs").write_text(str(process.pid))
            if _make_realtime(process.pid):
                return "the dying can be made real-time", Level.OK
            budget = Path(directory, "cpu.rt_runtime_us")
            if legacy and budget.exists():
                budget.write_text(str(_LEAST_BUDGET_US))
                if _make_realtime(process.pid):
                    return "the dying can be made real-time, on a lent budget (RT_GROUP_SCHED)", Level.OK
        except OSError as error:
            return f"the dying can't be made real-time: {error.strerror}", Level.DEGRADED
        return "the dying can't be made real-time: not permitted", Level.DEGRADED


def _make_realtime(pid: int) -> bool:
    try:
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(DYING_PRIORITY))
    except PermissionError:
        return False
    return True


@contextmanager
def _scratch(root: str | None) -> Iterator[str | None]:
    """A cgroup of our own, while it is needed; None where none can be made."""
    directory = f"{root}/expedited-doctor-{os.getpid()}"
    made = False
    try:
        with suppress(OSError):
            Path(directory).mkdir()
            made = True
        yield directory if made else None
    finally:
        if made:
            _remove(directory)


def _remove(directory: str) -> None:
    """What has just died in it may hold it for a moment."""
    end = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            Path(directory).rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > end:
                return
            time.sleep(0.005)
        else:
            return

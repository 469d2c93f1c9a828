"""Cgroups for one test, of either version."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expedited.teardown.hierarchies import hierarchies

__all__ = ["V1_CONTROLLERS", "ScratchCgroup", "enable_controllers", "mounted_versions", "scratch"]

V1_CONTROLLERS = ("memory", "pids", "cpu", "freezer")


@dataclass(frozen=True, slots=True)
class ScratchCgroup:
    """A cgroup made for one test, with the same path in each of its hierarchies.

    Attributes:
        path: As /proc/PID/cgroup has it.
        directories: Controller (``unified`` on version 2) -> directory.
    """

    version: int
    path: str
    directories: dict[str, Path]

    def add(self, pid: int) -> None:
        """Move a process into it, in every hierarchy."""
        for directory in self.directories.values():
            (directory / "cgroup.procs").write_text(str(pid))

    def pids(self) -> set[int]:
        """Who is in it (not below it), in any of its hierarchies."""
        return {
            int(pid)
            for directory in self.directories.values()
            for pid in (directory / "cgroup.procs").read_text().split()
        }

    @property
    def memory_dir(self) -> Path:
        """Whose memory controller it has, if its version has one here."""
        return self.directories["memory" if self.version == 1 else "unified"]

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Whoever is in it does not run: a process that dies stays as it is, with its memory (version 1's freezer)."""
        state = self.directories["freezer"] / "freezer.state"
        state.write_text("FROZEN")
        try:
            while "FROZEN" not in state.read_text():
                time.sleep(0.001)
            yield
        finally:
            if state.exists():
                state.write_text("THAWED")

    def child(self, name: str) -> ScratchCgroup:
        """A cgroup below it, which goes with it."""
        directories = {key: directory / name for key, directory in self.directories.items()}
        return scratch(self.version, directories, f"{self.path}/{name}")


def scratch(version: int, directories: dict[str, Path], path: str) -> ScratchCgroup:
    """Make it; the directories above it are there."""
    for controller, directory in directories.items():
        directory.mkdir(exist_ok=True)
        if controller == "cpuset":  # version 1's start empty, and take no process then
            for name in ("cpuset.cpus", "cpuset.mems"):
                (directory / name).write_text((directory.parent / name).read_text())
    return ScratchCgroup(version, path, directories)


def mounted_versions() -> list[int]:
    """Of the cgroup versions, those that a container could be in here."""
    mounts = hierarchies()
    versions = [1] if all(name in mounts.controllers for name in V1_CONTROLLERS) else []
    return [*versions, 2] if mounts.unified is not None else versions


def enable_controllers(directory: Path) -> None:
    """For the children of a cgroup of version 2: those that we use, if it has them."""
    available = (directory / "cgroup.controllers").read_text().split()
    for controller in ("memory", "pids", "cpu", "cpuset"):
        if controller in available:
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")

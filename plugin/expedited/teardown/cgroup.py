"""One container's cgroup, on version 2, version 1 or a mixture of both.

Finds it (by directory, by a path of /proc/PID/cgroup, by the runtime's own record, by a process), lists its processes,
reads its memory, kills it. A :class:`Cgroup` is only a set of directories: it may vanish at any moment, and then it is
empty.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass

from expedited.errors import ExpeditedError, UsageError
from expedited.teardown.files import read, write
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.memory_stat import memory
from expedited.teardown.report import Memory

__all__ = ["Cgroup", "CgroupGone", "TargetError"]


# What is given back without a pause: whoever is real-time and computes for seconds is taken for one that has run away
_RECLAIM_BYTES = 512 << 20
_PAUSE_SECONDS = 0.0001


class TargetError(UsageError):
    """The cgroup that was named must not, or can't, be struck; nothing was touched."""


class CgroupGone(ExpeditedError):
    """The container or cgroup that was named does not exist (any more)."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The directories of one cgroup.

    Attributes:
        path: As /proc/PID/cgroup has it, from the root of its hierarchy.
        procs_dir: Whose ``cgroup.procs``, with those of its descendants, names the processes.
        memory_dir: Whose memory controller accounts for it; None where there is none.
        cpu_dir: Whose CPU weight and quota hold it.
        cpuset_dir: Whose CPU set holds it.
        freezer_dir: Version 1's freezer, with which a fork bomb is held still; None on version 2, which needs none.
    """

    version: int
    path: str
    procs_dir: str
    memory_dir: str | None
    cpu_dir: str | None
    cpuset_dir: str | None
    freezer_dir: str | None

    # -- finding one ---------------------------------------------------------------------------------------------------

    @classmethod
    def find(cls, name: str) -> Cgroup:
        """From a directory of a mounted hierarchy, or a path as in /proc/PID/cgroup.

        Raises:
            TargetError: the name leads out of the hierarchies.
            CgroupGone: there is no such cgroup.
        """
        mounts = hierarchies()
        directory = os.path.realpath(name)
        root = mounts.root_of(directory)
        if root is not None:
            if not os.path.isdir(directory):
                raise CgroupGone(f"cgroup {name}: no such directory; the container is gone, or the name is wrong")
            return cls._at("/" + directory[len(root) :].strip("/"))
        if not name.startswith("/") or ".." in name.split("/"):
            raise TargetError(
                f"cgroup {name}: outside the cgroup hierarchy; give a path that starts with / and has no .."
            )
        if os.path.isdir(name) and name != "/":
            raise TargetError(f"cgroup {name}: this directory is not in a cgroup file system")
        return cls._at("/" + name.strip("/"))

    @classmethod
    def of_process(cls, pid: int) -> Cgroup:
        """The cgroup that a process is in.

        Raises:
            CgroupGone: there is no such process.
        """
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
                paths = dict(pair for line in lines for pair in _line_of_proc_cgroup(line))
        except (FileNotFoundError, ProcessLookupError):
            raise CgroupGone(f"process {pid} does not exist") from None
        return cls._from_paths(paths)

    @classmethod
    def from_runtime(cls, directories: Mapping[str, str]) -> Cgroup:
        """From runc's record (``cgroup_paths`` of state.json): controller (empty on version 2) to directory.

        Raises:
            CgroupGone: none of the directories is in a mounted hierarchy.
        """
        mounts = hierarchies()
        paths = {}
        for controller, directory in directories.items():
            root = mounts.root_of(directory)
            if root is not None:
                paths[controller] = "/" + directory[len(root) :].strip("/")
        return cls._from_paths(paths)

    @classmethod
    def _at(cls, path: str) -> Cgroup:
        mounts = hierarchies()
        paths = {controller: path for controller, root in mounts.controllers.items() if os.path.isdir(root + path)}
        if mounts.unified and os.path.isdir(mounts.unified + path):
            paths[""] = path
        if not paths:
            raise CgroupGone(
                f"cgroup {path}: there is none in any hierarchy; the container is gone, or the name is wrong"
            )
        return cls._from_paths(paths)

    @classmethod
    def _from_paths(cls, paths: Mapping[str, str]) -> Cgroup:
        mounts = hierarchies()

        def v1(*names: str) -> str | None:
            for name in names:
                if name in mounts.controllers and paths.get(name, "/") != "/":
                    return mounts.controllers[name] + paths[name]
            return None

        unified = mounts.unified + paths[""] if mounts.unified and "" in paths else None
        # On a hybrid host a container is in version 1's hierarchies, and version 2's may hold all of the machine.
        legacy = v1("memory", "pids", "freezer", "cpu")
        if legacy is not None:
            return cls(
                version=1,
                path=next(paths[name] for name in ("memory", "pids", "freezer", "cpu") if paths.get(name, "/") != "/"),
                procs_dir=legacy,
                memory_dir=v1("memory"),
                cpu_dir=v1("cpu"),
                cpuset_dir=v1("cpuset"),
                freezer_dir=v1("freezer"),
            )
        if unified is None:
            raise CgroupGone(
                "the process or container is in no cgroup of its own, so there is nothing that may be struck"
            )
        has_memory = os.path.exists(unified + "/memory.stat")
        return cls(2, paths[""], unified, unified if has_memory else None, unified, unified, None)

    # -- what is in it -------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Every process of the cgroup and its descendants; empty when the cgroup is gone.

        A process that our pid namespace does not see can't be named from here: it shows as 0 and is left out (version 2),
        or does not show at all (version 1).
        """
        found: list[int] = []
        pending = [self.procs_dir]
        while pending:
            directory = pending.pop()
            found += _read_pids(directory + "/cgroup.procs")
            pending += _children(directory)
        return found

    def is_empty(self) -> bool:
        """Whether no process is left, in it and below; a cgroup that was removed is empty."""
        if self.version == 2:
            try:
                return b"populated 0" in read(self.procs_dir + "/cgroup.events")
            except OSError:
                return not os.path.isdir(self.procs_dir)
        return not self.pids()

    def memory(self) -> Memory | None:
        """What it holds now; None where there is no memory controller or the cgroup is gone."""
        if self.memory_dir is None:
            return None
        try:
            return self.memory_by(read(self.memory_dir + "/memory.stat"))
        except OSError:
            return None

    def memory_by(self, stat: bytes) -> Memory:
        """The same from a memory.stat that was read already."""
        swap = 0
        if self.version == 2:
            try:
                swap = int(read(f"{self.memory_dir}/memory.swap.current"))
            except OSError:
                pass
        return memory(stat, self.version, swap)

    # -- what can be done to it ----------------------------------------------------------------------------------------

    def kill(self) -> bool:
        """SIGKILL everything in it and below, forks in progress too: ``cgroup.kill`` (Linux 5.14, version 2).

        Returns:
            False where the kernel has no such file; then the caller has to signal one by one.
        """
        if self.version == 1:
            return False
        try:
            write(self.procs_dir + "/cgroup.kill", b"1")
        except FileNotFoundError:
            return not os.path.isdir(self.procs_dir)
        except OSError as error:
            return error.errno == errno.ENODEV
        return True

    def freeze(self) -> bool:
        """Hold every process still (version 1's freezer); False where that can't be done."""
        if self.freezer_dir is None:
            return False
        try:
            write(self.freezer_dir + "/freezer.state", b"FROZEN")
        except OSError:
            return False
        return True

    def thaw(self) -> bool:
        """Let everybody go who is held still, in it and below, so that they take the SIGKILL that they have.

        Version 1 only: on version 2 a SIGKILL reaches the frozen, too.

        Returns:
            Whether anybody was held.
        """
        held = False
        pending = [self.freezer_dir] if self.freezer_dir is not None else []
        while pending:
            directory = pending.pop()
            pending += _children(directory)
            try:
                if read(directory + "/freezer.state") != b"THAWED\n":
                    write(directory + "/freezer.state", b"THAWED")
                    held = True
            except OSError:
                continue  # removed meanwhile
        return held

    def drop_page_cache(self) -> int:
        """Give back the clean page cache that is charged to it, before the runtime removes the cgroup.

        ``memory.reclaim`` (version 2, Linux 5.19) or ``memory.force_empty`` (version 1).

        Returns:
            How many bytes of file memory there are fewer now.
        """
        before = self.memory()
        if before is None or self.memory_dir is None or before.file_bytes == 0:
            return 0
        try:
            if self.version == 1:
                write(self.memory_dir + "/memory.force_empty", b"0")
            else:
                for left in range(before.file_bytes, 0, -_RECLAIM_BYTES):
                    write(self.memory_dir + "/memory.reclaim", b"%d" % min(left, _RECLAIM_BYTES))
                    time.sleep(_PAUSE_SECONDS)
        except OSError:
            # EAGAIN: not all of it could be had; ENODEV and ENOENT: the runtime was quicker. Count what is gone.
            pass
        after = self.memory()
        return max(0, before.file_bytes - after.file_bytes) if after else 0

    def refuse_if_not_a_containers(self) -> None:
        """Make sure that this is something that may be struck.

        Raises:
            TargetError: it is the root, or holds this process, or pid 1.
        """
        if self.path == "/":
            raise TargetError(
                "cgroup /: this is the root of the hierarchy, with every process of the node; nothing was done"
            )
        self.refuse_members(self.pids())

    def refuse_members(self, pids: Container[int]) -> None:
        """The same by a list of its members, for a strike that has just made one.

        Raises:
            TargetError: this process or pid 1 is among them.
        """
        if os.getpid() in pids:
            raise TargetError(f"cgroup {self.path}: expedited itself runs in it; nothing was done")
        if 1 in pids:
            raise TargetError(f"cgroup {self.path}: pid 1 is in it, so it is no container's; nothing was done")

    @staticmethod
    def own_directories() -> list[str]:
        """The directories of this process's own cgroups, in every hierarchy."""
        mounts = hierarchies()
        own = []
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            for controller, path in (pair for line in lines for pair in _line_of_proc_cgroup(line)):
                root = mounts.controllers.get(controller) if controller else mounts.unified
                if root is not None:
                    own.append((root + path).rstrip("/"))
        return own


def _line_of_proc_cgroup(line: str) -> list[tuple[str, str]]:
    """``4:cpu,cpuacct:/a/b`` to its controllers (an empty one: version 2), each with the path (cgroups(7))."""
    _, controllers, path = line.rstrip("\n").split(":", 2)
    return [(controller, path) for controller in controllers.split(",")]


def _read_pids(path: str) -> list[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # not to be taken for "nobody is there"
        return []
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:
        pass  # ENODEV: removed meanwhile; EOPNOTSUPP: a threaded cgroup, whose processes its domain lists
    finally:
        os.close(descriptor)
    return [pid for pid in map(int, b"".join(parts).split()) if pid]


def _children(directory: str) -> list[str]:
    try:
        # kernfs counts a directory's links as 2 and one more for each child, which saves a listing here
        if os.stat(directory).st_nlink == 2:
            return []
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []

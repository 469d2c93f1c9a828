"""Which directories are gated: the runtimes' state directories, found and followed as they come and go.

How a new container's kill is never missed is written down in docs/decisions/0004-no-window.md. In short: a directory
is watched *before* it is listed; whoever executes a runtime binary is held until every directory event up to that moment
has been handled; and with NRI the runtime waits in its START hook until the mark is set.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable

from expedited.striker.fanotify import (
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    INotify,
    mark_binary,
    mark_directory,
)

__all__ = ["Roots", "own_container_ids"]

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_MOUNTED_BY_RUNTIMES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_LOOKS = 5
_RUNTIMES = ("runc", "crun", "youki")
_BINARY_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/libexec/podman")


def own_container_ids() -> frozenset[str]:
    """The ids of the container that this process itself runs in.

    It is never gated, so that a hung gate can't hold up the very kill that is meant for it.
    """
    found = set(_CONTAINER_ID.findall(_text("/proc/self/cgroup")))
    for line in _text("/proc/self/mountinfo").splitlines():
        # proc_pid_mountinfo(5): the fourth field is what was mounted, the fifth where. On a node itself, all containers'
        # root file systems are mounted as well: only what runtimes put into a container leads to our own.
        what, where = line.split()[3:5]
        if where in _MOUNTED_BY_RUNTIMES:
            found.update(_CONTAINER_ID.findall(what))
    return frozenset(found)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


class Roots:
    """The containers' directories, and the marks on them of one fanotify group.

    Args:
        group: The fanotify group; None: nobody is to be held, only the directories are to be known.
        patterns: Directories with one directory a container; ``*`` as the last part stands for any namespace.
        spared: Container ids never to be gated.
        hold_executions: Whether to hold whoever executes a runtime binary.
    """

    def __init__(
        self, group: int | None, patterns: Iterable[str], spared: frozenset[str], *, hold_executions: bool
    ) -> None:
        self.inotify = INotify()
        self.binaries: set[str] = set()
        self._group = group
        self._patterns = tuple(pattern.rstrip("/") for pattern in patterns)
        self._spared = spared
        self._hold_executions = hold_executions and group is not None
        self._marked: dict[str, str] = {}  # container's directory -> its id
        self._parents: dict[int, str] = {}  # inotify watch -> directory of containers
        self._waiting: dict[int, str] = {}  # inotify watch -> directory in which a root's next part will appear
        # The gate's loop handles events, the link's thread asks for marks.
        self._lock = threading.Lock()

    @property
    def marked(self) -> tuple[str, ...]:
        """The gated containers' directories; with no group, those that are followed."""
        return tuple(self._marked)

    def find(self, container_id: str, root: str) -> str:
        """The directory of a container by its id; empty where there is none.

        Args:
            container_id: As the runtime has it.
            root: What the runtime's ``--root`` says: it tells two of the same id apart. Not more, as the runtime may see
                another place by that name.
        """
        with self._lock:
            found = [directory for directory, name in self._marked.items() if name == container_id]
        if len(found) > 1:
            of = os.path.realpath(root)
            found = [directory for directory in found if os.path.realpath(os.path.dirname(directory)) == of]
        return found[0] if found else ""

    def scan(self) -> None:
        """Watch and mark everything that is there; safe to do again at any time."""
        with self._lock:
            if self._hold_executions:
                for folder in (*_BINARY_FOLDERS, *os.environ.get("PATH", "").split(":")):
                    for runtime in _RUNTIMES:
                        self._hold(f"{folder}/{runtime}")
            for pattern in self._patterns:
                self._follow(pattern)

    def drain(self) -> list[str]:
        """Handle every directory event so far.

        Returns:
            The directories of containers that were deleted.
        """
        deleted: list[str] = []
        rescan = False
        for watch, mask, name in self.inotify.read():
            with self._lock:
                parent = self._parents.get(watch)
                if parent is not None and mask & IN_ISDIR:
                    directory = f"{parent}/{name}"
                    if mask & IN_DELETE:
                        self._marked.pop(directory, None)
                        deleted.append(directory)
                    else:
                        self._marked.pop(directory, None)  # made again: a new inode, which wants a new mark
                        self._mark(directory)
                elif mask & (IN_DELETE_SELF | IN_IGNORED):
                    gone = self._parents.pop(watch, None) or self._waiting.pop(watch, None)
                    rescan = rescan or gone is not None
                elif mask & IN_Q_OVERFLOW or watch in self._waiting:
                    rescan = True
        if rescan:
            self.scan()
            with self._lock:
                # Whose deletion was among the events that were lost
                for directory in [known for known in self._marked if not os.path.isdir(known)]:
                    del self._marked[directory]
                    deleted.append(directory)
        return deleted

    def ensure(self, container_id: str) -> bool:
        """Mark one container now, wherever it is; True if it is gated."""
        if container_id in self._spared or container_id in ("", ".", "..") or "/" in container_id:
            return False
        with self._lock:
            found = False
            for parent in set(self._parents.values()):
                found = self._mark(f"{parent}/{container_id}") or found
            return found

    # -- with the lock held --------------------------------------------------------------------------------------------

    def _hold(self, path: str) -> None:
        real = os.path.realpath(path)
        if self._group is None or real in self.binaries:
            return
        try:
            mark_binary(self._group, real)
        except OSError:
            return  # not there; or no FAN_OPEN_EXEC_PERM here, and NRI and inotify have to do
        self.binaries.add(real)

    def _follow(self, pattern: str) -> None:
        base, star, _ = pattern.partition("/*")
        if not self._watch_until_there(base or "/"):
            return
        if not star:
            self._follow_parent(base)
            return
        # base is in _waiting: a namespace that appears in it leads to the next scan
        for name in _directories(base):
            self._follow_parent(f"{base}/{name}")

    def _watch_until_there(self, base: str) -> bool:
        """Watch ``base``, or the deepest part of its path that exists; each is watched before the next is looked for."""
        for _ in range(_LOOKS):
            try:
                return self._watch_path(base)
            except FileNotFoundError:
                continue  # a part of it went between the look and the watch: begin again from the top
            except OSError:
                return False  # a file of that name, or no inotify watches left
        return False

    def _watch_path(self, base: str) -> bool:
        directory = ""
        for part in ["", *base.strip("/").split("/")]:
            directory = f"{directory.rstrip('/')}/{part}" if part else "/"
            if directory != base and os.path.isdir(f"{directory.rstrip('/')}/{self._next_part(directory, base)}"):
                continue
            watch = self.inotify.watch(directory, IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF)
            if watch not in self._parents:
                self._waiting[watch] = directory
            if directory == base:
                return True
            if not os.path.isdir(f"{directory.rstrip('/')}/{self._next_part(directory, base)}"):
                return False
        return True

    @staticmethod
    def _next_part(directory: str, base: str) -> str:
        return base[len(directory.rstrip("/")) + 1 :].split("/", 1)[0]

    def _follow_parent(self, parent: str) -> None:
        # As the kernel names the file that somebody opens: below /var/run, say, the same container would have two names
        parent = os.path.realpath(parent)
        try:
            watch = self.inotify.watch(parent, IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF)
        except OSError:
            return
        self._waiting.pop(watch, None)
        self._parents[watch] = parent
        for name in _directories(parent):
            self._mark(f"{parent}/{name}")

    def _mark(self, directory: str) -> bool:
        container_id = os.path.basename(directory)
        if container_id in self._spared:
            return False
        try:
            if self._group is not None:
                # Marking twice is harmless, and right where the directory was made again
                mark_directory(self._group, directory)
            elif not os.path.isdir(directory):
                return False
        except OSError:
            return False
        self._marked[directory] = container_id
        return True


def _directories(parent: str) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []

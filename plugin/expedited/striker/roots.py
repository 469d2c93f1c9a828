"""Which directories are gated: the runtimes' state directories, found and followed as they come and go.

How a new container's kill is never missed is written down in docs/decisions/0004-no-window.md. In short: a directory
is watched *before* it is listed; whoever executes a runtime binary is held until every directory event up to that moment
has been handled; and with NRI the runtime waits in its START hook until the mark is set.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterable

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
_RUNTIMES = ("runc", "crun")
#: How often is looked whether a runtime was installed anew; and, where not every directory can be watched, what has come.
_LOOK_AGAIN_SECONDS, _LOOK_INSTEAD_SECONDS = 10.0, 1.0
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
        complain: Takes a line for a person.

    Attributes:
        binaries: Path of each runtime binary whose executions are held -> which file that is.

    Raises:
        OSError: there is no inotify instance left for this user.
    """

    def __init__(
        self,
        group: int | None,
        patterns: Iterable[str],
        spared: frozenset[str],
        *,
        hold_executions: bool,
        complain: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.inotify = INotify()
        self.binaries: dict[str, tuple[int, int]] = {}
        self._complain = complain
        self._group = group
        self._patterns = tuple(pattern.rstrip("/") for pattern in patterns)
        self._spared = spared
        self._hold_executions = hold_executions and group is not None
        self._marked: dict[str, str] = {}  # container's directory -> its id
        self._parents: dict[int, str] = {}  # inotify watch -> directory of containers
        self._awaited: dict[
            int, set[str]
        ] = {}  # inotify watch -> names of what is awaited there; none: of whatever comes
        self._unwatched: set[str] = set()  # directories of containers for which there was no watch left
        self._short_of_watches = False
        self._look_again_at = 0.0
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
            was_short, self._short_of_watches = self._short_of_watches, False
            self._unwatched.clear()
            self._hold_binaries()
            for pattern in self._patterns:
                self._follow(pattern)
            is_short = self._short_of_watches
        if is_short and not was_short:
            self._complain(
                "no inotify watches left for this user: new containers are found by looking every second, and a kill that is"
                " sooner is the runtime's alone; raise the sysctl fs.inotify.max_user_watches"
            )

    def look_again(self) -> list[str]:
        """Make up for what no event tells of; at once, where it is not time for that yet.

        Returns:
            The directories of containers that were deleted.
        """
        now = time.monotonic()
        if now < self._look_again_at:
            return []
        deleted = []
        if self._short_of_watches:
            deleted = self._rescan()
        else:
            with self._lock:
                self._hold_binaries()
        self._look_again_at = now + (_LOOK_INSTEAD_SECONDS if self._short_of_watches else _LOOK_AGAIN_SECONDS)
        return deleted

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
                    known = watch in self._parents or watch in self._awaited
                    self._parents.pop(watch, None)
                    self._awaited.pop(watch, None)
                    rescan = rescan or known
                elif mask & IN_Q_OVERFLOW or self._is_awaited(watch, name):
                    rescan = True
        return deleted + self._rescan() if rescan else deleted

    def _rescan(self) -> list[str]:
        """Scan, and find whose deletion no event has told of."""
        self.scan()
        with self._lock:
            gone = [known for known in self._marked if not os.path.isdir(known)]
            for directory in gone:
                del self._marked[directory]
        return gone

    def ensure(self, container_id: str) -> bool:
        """Mark one container now, wherever it is; True if it is gated."""
        if container_id in self._spared or container_id in ("", ".", "..") or "/" in container_id:
            return False
        with self._lock:
            found = False
            for parent in {*self._parents.values(), *self._unwatched}:
                found = self._mark(f"{parent}/{container_id}") or found
            return found

    # -- with the lock held --------------------------------------------------------------------------------------------

    def _hold_binaries(self) -> None:
        if not self._hold_executions:
            return
        for folder in (*_BINARY_FOLDERS, *os.environ.get("PATH", "").split(":")):
            for runtime in _RUNTIMES:
                self._hold(os.path.realpath(f"{folder}/{runtime}"))

    def _hold(self, path: str) -> None:
        try:
            status = os.stat(path)
            which = status.st_dev, status.st_ino
            if self._group is None or self.binaries.get(path) == which:
                return  # the mark is the file's: one that was installed in its place wants its own
            mark_binary(self._group, path)
        except OSError:
            return  # not there; or no FAN_OPEN_EXEC_PERM here, and NRI and inotify have to do
        self.binaries[path] = which

    def _is_awaited(self, watch: int, name: str) -> bool:
        names = self._awaited.get(watch)
        return names is not None and (not names or name in names)

    def _watch(self, directory: str) -> int | None:
        """None: there are no watches left, and it is to be looked at instead."""
        try:
            return self.inotify.watch(directory, IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF)
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
            self._short_of_watches = True
            return None

    def _follow(self, pattern: str) -> None:
        base, star, _ = pattern.partition("/*")
        if not self._watch_until_there(base or "/"):
            return
        if not star:
            self._follow_parent(base)
            return
        # All is awaited in base: a namespace that appears in it leads to the next scan
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
                return False  # a file of that name
        return False

    def _watch_path(self, base: str) -> bool:
        directory = ""
        for part in ["", *base.strip("/").split("/")]:
            directory = f"{directory.rstrip('/')}/{part}" if part else "/"
            if directory != base and os.path.isdir(f"{directory.rstrip('/')}/{self._next_part(directory, base)}"):
                continue
            watch = self._watch(directory)
            if watch is not None and watch not in self._parents:
                if directory == base:
                    self._awaited[watch] = set()
                elif self._awaited.get(watch) != set():
                    self._awaited.setdefault(watch, set()).add(self._next_part(directory, base))
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
            watch = self._watch(parent)
        except OSError:
            return
        if watch is None:
            self._unwatched.add(parent)
        else:
            self._awaited.pop(watch, None)
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

"""Out of memory in a container: the one kill that no runtime command announces. The kernel tells of it by the cgroup.

Version 2: ``memory.events`` changes once it has killed. Version 1: an eventfd, by ``cgroup.event_control``, when it is
about to. See docs/decisions/0011-oom.md.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from expedited.errors import ExpeditedError
from expedited.striker.container import Container, open_state, read_container
from expedited.striker.roots import Roots
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.files import inode
from expedited.teardown.linux import be_realtime
from expedited.teardown.pidfd import highest_ahead
from expedited.teardown.reap import STRIKER_PRIORITY

__all__ = ["OomWatch"]

#: A container is watched this long after it appeared, at the latest: an OOM kill needs no more of a hurry.
_LOOK_SECONDS = 1.0


class OomWatch:
    """Watches every container that the source follows, in a thread of its own.

    Args:
        roots: Whose containers.
        on_oom: Takes the container, and the ``time.monotonic()`` of when the kernel told; must return at once.
    """

    def __init__(self, roots: Roots, on_oom: Callable[[Container, float], None]) -> None:
        self._roots = roots
        self._on_oom = on_oom
        self._bells: dict[int, _Bell] = {}
        self._poller = select.poll()

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="oom", daemon=True).start()

    def _run(self) -> None:
        be_realtime(STRIKER_PRIORITY)  # not the gate's, whose loop has started it
        while True:
            self._follow()
            end = time.monotonic() + _LOOK_SECONDS
            while (left := end - time.monotonic()) > 0:
                for descriptor, _ in self._poller.poll(1000 * left):
                    self._hear(descriptor)

    def _hear(self, descriptor: int) -> None:
        bell = self._bells[descriptor]
        try:
            if bell.rang():
                self._on_oom(bell.container, time.monotonic())
        except OSError:
            self._let_go(descriptor)  # its cgroup is gone; one of the same name may be there, with a bell to come
            return
        if bell.is_of_the_past():
            self._let_go(descriptor)

    def _follow(self) -> None:
        """Listen to those who are new, and no more to those who are gone."""
        there = set(self._roots.marked)
        for descriptor, bell in list(self._bells.items()):
            if bell.container.directory not in there or bell.is_of_the_past():
                self._let_go(descriptor)
        for directory in there - {bell.container.directory for bell in self._bells.values()}:
            try:
                self._listen(directory)
            except (ExpeditedError, OSError):
                pass  # not created to its end yet, going already, or with no memory controller

    def _listen(self, directory: str) -> None:
        state = open_state(directory)
        if state is None:
            return
        try:
            container = read_container(directory, state)
        finally:
            os.close(state)
        bell = _Bell(replace(container, init=None), container.cgroup)  # nobody asks after its init
        if bell.descriptor >= highest_ahead():
            os.close(bell.descriptor)
            return
        self._bells[bell.descriptor] = bell
        self._poller.register(bell.descriptor, bell.events)

    def _let_go(self, descriptor: int) -> None:
        self._poller.unregister(descriptor)
        del self._bells[descriptor]
        os.close(descriptor)


class _Bell:
    """What becomes readable when the kernel kills in one cgroup.

    Raises:
        OSError: the cgroup is gone, or has no memory controller.
    """

    def __init__(self, container: Container, cgroup: Cgroup) -> None:
        self.container = container
        self.directory = str(cgroup.memory_dir)
        self._version = cgroup.version
        self._inode = inode(self.directory)
        self._kills = 0
        if self._version == 2:
            self.events = select.POLLPRI
            self.descriptor = os.open(f"{self.directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._kills = self._count()
            except OSError:  # ENODEV: removed meanwhile
                os.close(self.descriptor)
                raise
            return
        self.events = select.POLLIN
        control = os.open(f"{self.directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                with open(f"{self.directory}/cgroup.event_control", "w", encoding="ascii") as file:
                    file.write(f"{self.descriptor} {control}")
            except OSError:
                os.close(self.descriptor)
                raise
        finally:
            os.close(control)

    def rang(self) -> bool:
        """Whether it was for a kill; version 1 rings before, and nobody may be killed in the end."""
        if self._version == 1:
            os.eventfd_read(self.descriptor)
            return not self.is_of_the_past()
        before, self._kills = self._kills, self._count()
        return self._kills > before

    def is_of_the_past(self) -> bool:
        """Whether its cgroup is gone, be it that another has its name: a container that starts again under the same id."""
        return inode(self.directory) != self._inode

    def _count(self) -> int:
        lines = os.pread(self.descriptor, 4096, 0).splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(b"oom_kill ")), 0)

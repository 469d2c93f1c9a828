"""The containers that were learnt in advance, so that at a kill no state file has to be read."""

from __future__ import annotations

import os

from expedited.striker.container import Container, directory_of_state, read_container

__all__ = ["Known"]

#: What a state file that was written anew, or another container's, does not have in common with this one: (device, inode, mtime).
_Identity = tuple[int, int, int]


class Known:
    """Containers by their state file. Used from several threads: each step is one of a dict's own."""

    def __init__(self) -> None:
        self._containers: dict[_Identity, Container] = {}
        self._state_files: dict[str, _Identity] = {}  # by the container's directory

    def find(self, descriptor: int) -> Container | None:
        """The container whose state file this is, if it was learnt from just this one."""
        return self._containers.get(_identity(descriptor))

    def learn(self, directory: str, descriptor: int) -> Container:
        """Read its state file, in place of what was learnt before.

        Raises:
            StateError, CgroupGone: see :func:`read_container`.
        """
        container = read_container(directory, descriptor)
        self.forget(directory)
        identity = self._state_files[directory] = _identity(descriptor)
        self._containers[identity] = container
        return container

    def learn_if_state(self, descriptor: int) -> str:
        """The same of a file that may be another one of the directory.

        Returns:
            The directory; empty if it is no state file.
        """
        directory = directory_of_state(descriptor)
        if directory:
            self.learn(directory, descriptor)
        return directory

    def forget(self, directory: str) -> None:
        """The container is no more."""
        state_file = self._state_files.pop(directory, None)
        if state_file is not None:
            self._containers.pop(state_file, None)


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_mtime_ns

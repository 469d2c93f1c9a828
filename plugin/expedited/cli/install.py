"""``expedited install``."""

from __future__ import annotations

from pathlib import Path

from expedited.annotations import nearest
from expedited.errors import ExpeditedError, UsageError
from expedited.install import Starter
from expedited.install import install as put_in_place
from expedited.install import remove as take_back
from expedited.settings import AgentSettings

__all__ = ["change_host", "close_gate"]


def change_host(*, host: bool, remove: bool, start_by: str | None, root: Path) -> None:
    """Do it, a line about each thing.

    Raises:
        UsageError: it was not said what to do, or that in words that are not known.
        ExpeditedError: it can't be done; nothing of the attempt is left.
    """
    if host == remove:
        raise UsageError("say either --host, to put the agent onto this node, or --remove, to take it back")
    if remove:
        if start_by:
            raise UsageError("--start-by goes with --host: --remove takes back what there is")
        take_back(root, print)
        if root == Path("/"):
            close_gate(AgentSettings().api_socket)
        return
    words = [starter.value for starter in Starter]
    if start_by is not None and start_by not in words:
        raise UsageError(f"--start-by takes {' or '.join(words)}, not {start_by!r}{nearest(start_by, words)}")
    put_in_place(root, Starter(start_by) if start_by else None, print)


def close_gate(socket: str) -> None:
    """End the gate of an agent that nobody has stopped, if there is one: its runtime has started it, and ends it."""
    if not Path(socket).is_socket():
        return
    from expedited.api.client import ApiClient

    try:
        with ApiClient(socket) as agent:
            agent.close_gate()
    except ExpeditedError as problem:
        print(f"an agent may run still: {problem}")
    else:
        print("closed the gate of an agent that runs still: it ends with the next restart of what has started it")

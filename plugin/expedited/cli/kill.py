"""``expedited kill``."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from expedited.annotations import TERMS, nearest
from expedited.api.client import ApiClient
from expedited.api.convert import stop_to_pb, to_plain
from expedited.cli.tables import console, print_steps, stops_table
from expedited.errors import ExpeditedError, UsageError
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.settings import AgentSettings
from expedited.stop import Stop
from expedited.teardown import Cgroup, Policy, strike
from expedited.teardown.report import Outcome

__all__ = ["kill"]

_NOT_DONE = (Outcome.DEADLINE, Outcome.FAILED)
_LONGEST_NAME = 4096  # PATH_MAX of linux/limits.h


def kill(
    settings: AgentSettings,
    *,
    container_id: str | None,
    cgroup: str | None,
    pod: str | None,
    page_cache: str | None,
    boost: str | None,
    deadline: str | None,
    as_json: bool,
) -> int:
    """Strike by the agent; a cgroup also without one.

    Returns:
        0; 1 when something was still there at the deadline.

    Raises:
        UsageError: not exactly one target, a wrong value, or something that must not be struck; nothing was done.
    """
    named = {
        name: value
        for name, value in (("container_id", container_id), ("cgroup", cgroup), ("pod", pod))
        if value is not None
    }
    if len(named) != 1:
        raise UsageError("kill what? Give a container's id, or one of --cgroup and --pod")
    _refuse_what_names_nothing(*named.values())
    said = {"page-cache": page_cache, "boost": boost, "deadline": deadline}
    parsed = {name: _parsed(name, value) for name, value in said.items() if value is not None}
    if cgroup and _nobody_listens_at(settings.api_socket):
        stops = [_strike_without_agent(settings.policy, cgroup, parsed)]
    else:
        request = pb.StrikeRequest(
            **named,
            page_cache=parsed.get("page-cache", ""),
            boost=("on" if parsed["boost"] else "off") if "boost" in parsed else "",
            deadline_seconds=parsed.get("deadline", 0.0),
        )
        with ApiClient(settings.api_socket) as agent:
            stops = agent.strike(request)
    if as_json:
        print(json.dumps({"stops": [to_plain(stop) for stop in stops]}))
    else:
        terminal = console()
        terminal.print(stops_table(stops, width=terminal.width))
        for stop in stops:
            print_steps(stop, terminal)
    return 1 if any(stop.outcome in _NOT_DONE for stop in stops) else 0


def _refuse_what_names_nothing(name: str) -> None:
    """Before it is sent: an id that a variable in a script did not have, or what no name can be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name!r} is no name: it is not UTF-8") from None
    if not name.strip():
        raise UsageError("kill what? The name that was given is empty")
    if len(name) > _LONGEST_NAME:
        raise UsageError(f"nothing is called {name[:40]}... ({len(name):,} letters)")


def _parsed(name: str, value: str) -> Any:
    term = TERMS[name]
    try:
        return term.parse(value)
    except ValueError:
        raise UsageError(f"--{name} takes {term.accepted}, not {value!r}{nearest(value, term.words)}") from None


def _nobody_listens_at(path: str) -> bool:
    """Whether there is no agent at all, nor one that is closed to this user; a crash may have left its socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            pass  # the client has a line for it
    return False


def _strike_without_agent(policy: Policy, name: str, parsed: dict[str, Any]) -> pb.Stop:
    if os.geteuid() != 0:
        raise ExpeditedError("no agent runs, and without one only root can strike: ask as root")
    target = Cgroup.find(name)
    target.refuse_if_not_a_containers()
    print("no agent runs: striking from here", file=sys.stderr)
    said = {TERMS[term].field: value for term, value in parsed.items()}
    own = Policy.from_json({**policy.to_json(), **said, "mode": "strike", "min_size_bytes": 0})
    return stop_to_pb(Stop(strike(target, own)))

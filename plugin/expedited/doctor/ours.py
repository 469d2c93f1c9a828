"""Our own side: agent, striker, configuration, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from expedited import __version__
from expedited.doctor.finding import Area, Finding, Level
from expedited.doctor.knock import ANSWER_SECONDS, Door, knock, unopened
from expedited.doctor.striker import look as look_at_striker
from expedited.errors import ExpeditedError
from expedited.settings import AgentSettings

__all__ = ["look"]

# What it costs and how to get it: an agent, its answer, a look at it, a striker for it
_AN_AGENT = (
    "no pods' names and policies, no control API, no metrics; a striker that runs goes on striking",
    "expedited run, or the DaemonSet; --run-dir if it runs elsewhere",
)
_AN_ANSWER = (_AN_AGENT[0], "its log says more; end it, then expedited run, or let the DaemonSet start another")
_A_LOOK = ("it can't be told whether there are names, policies, control API and metrics", "ask as root")
_ITS_STRIKER = (
    "while no striker is at work, which the next line says, kills go the runtime's way; the rest of the agent does not need one",
    "it starts one again and again: its log says what is in the way, and what this machine lacks is listed above",
)
_ITS_CLOSED_STRIKER = (
    _ITS_STRIKER[0],
    "expedited close has ended it for good: end the agent too, then expedited run, or let the DaemonSet start another",
)


def look(settings: AgentSettings, config: Path | None) -> Iterator[Finding]:
    """Whether they are at work, and how."""
    yield _agent(settings)
    yield from look_at_striker(settings)
    yield _configuration(config)
    yield _versions()


def _agent(settings: AgentSettings) -> Finding:
    path = settings.api_socket
    door = knock(path).door
    if door is Door.OPEN:
        found, level, without = _ask_agent(path)
    else:
        found, level = unopened(path, door)
        without = {Door.CLOSED: _A_LOOK, Door.BUSY: _AN_ANSWER}.get(door, _AN_AGENT)
    return Finding(Area.OURS, "agent", found, level, *without)


def _ask_agent(path: str) -> tuple[str, Level, tuple[str, str]]:
    # Here, as gRPC takes 0.1 s to load, which is for nothing where there is no socket
    from expedited.api.client import ApiClient

    try:
        with ApiClient(path) as client:
            status = client.status(timeout_seconds=ANSWER_SECONDS)
    except ExpeditedError as error:
        return str(error), Level.DEGRADED, _AN_ANSWER
    sides = ((name, getattr(status, name)) for name in ("striker", "nri", "containerd"))
    found = f"{status.version} at {path}; " + ", ".join(f"{name} {state}" for name, state in sides)
    if status.striker == "ok":
        return found, Level.OK, _AN_AGENT
    return found, Level.DEGRADED, _ITS_CLOSED_STRIKER if status.striker == "closed" else _ITS_STRIKER


def _configuration(config: Path | None) -> Finding:
    # Here, as it brings pydantic; whoever has read a configuration has it loaded already
    from expedited.config import file_in_use, variables_in_use

    file, variables = file_in_use(config), len(variables_in_use())
    try:
        there = file.exists()
    except PermissionError:
        there = False
    found = f"{file}" if there else f"no {file}: defaults"
    return Finding(
        Area.OURS,
        "configuration",
        f"{found}, {variables} EXPEDITED_ variables" if variables else found,
        Level.OK,
        "nothing: every key has a default",
        "a YAML file, --config or EXPEDITED_CONFIG",
    )


def _versions() -> Finding:
    libraries = [f"{name} {_version(name)}" for name in ("grpcio", "protobuf")]
    return Finding(
        Area.OURS,
        "versions",
        ", ".join((f"expedited {__version__}", f"Python {platform.python_version()}", *libraries)),
        Level.OK,
        "without the libraries there is no agent; the striker needs Python alone",
        "in a checkout: make setup",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"

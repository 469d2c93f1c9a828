"""Our own side: agent, striker, configuration, versions."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from expedited import __version__
from expedited.doctor.finding import Area, Finding, Level
from expedited.doctor.knock import ANSWER_SECONDS, Door, knock
from expedited.errors import ExpeditedError
from expedited.settings import AgentSettings
from expedited.striker.link import StrikerLink

__all__ = ["look"]


def look(settings: AgentSettings, config: Path | None) -> Iterator[Finding]:
    """Whether they are at work, and how."""
    yield _agent(settings)
    yield _striker(settings)
    yield _configuration(config)
    yield _versions()


def _agent(settings: AgentSettings) -> Finding:
    path = settings.api_socket
    door = knock(path).door
    if door is Door.OPEN:
        found, level = _ask_agent(path)
    else:
        found, level = _nobody(path, door)
    return Finding(
        Area.OURS,
        "agent",
        found,
        level,
        "no pods' names and policies, no control API, no metrics; a striker that runs goes on striking",
        "expedited run, or the DaemonSet; --run-dir if it runs elsewhere",
    )


def _ask_agent(path: str) -> tuple[str, Level]:
    # Here, as gRPC takes 0.1 s to load, which is for nothing where there is no socket
    from expedited.api.client import ApiClient

    try:
        with ApiClient(path) as client:
            status = client.status(timeout_seconds=ANSWER_SECONDS)
    except ExpeditedError as error:
        return str(error), Level.DEGRADED
    sides = ((name, getattr(status, name)) for name in ("striker", "nri", "containerd"))
    found = f"{status.version} at {path}; " + ", ".join(f"{name} {state}" for name, state in sides)
    return found, Level.OK if status.striker == "ok" else Level.DEGRADED


def _striker(settings: AgentSettings) -> Finding:
    path = settings.striker_socket
    door = knock(path, socket.SOCK_SEQPACKET).door
    if door is Door.OPEN:
        found, level = _ask_striker(path)
    else:
        found, level = _nobody(path, door)
    return Finding(
        Area.OURS,
        "striker",
        found,
        level,
        "nothing is gated and nothing is struck: kills go the runtime's way",
        "expedited run starts it and keeps it up; alone, python -m expedited.striker; what it lacks is listed above",
    )


def _ask_striker(path: str) -> tuple[str, Level]:
    try:
        with StrikerLink.connect(path) as link:
            status = link.ask("status", timeout_seconds=ANSWER_SECONDS)
    except (ExpeditedError, ValueError) as error:
        return str(error), Level.DEGRADED
    holds = status.get("source") == "fanotify"
    well = holds and bool(status.get("realtime")) and bool(status.get("memory_locked"))
    return _describe(status), Level.OK if well else Level.DEGRADED


def _describe(status: dict[str, Any]) -> str:
    return ", ".join(
        (
            f"pid {status.get('pid')}, by {status.get('source')}",
            f"{len(status.get('gated', ()))} gated",
            f"kernel {status.get('kernel')}",
            "real-time" if status.get("realtime") else "not real-time",
            "memory locked" if status.get("memory_locked") else "memory not locked",
            f"{status.get('overruns')} over budget, {status.get('restarts')} restarts",
        )
    )


def _nobody(path: str, door: Door) -> tuple[str, Level]:
    return f"{path}: {door.value}", Level.UNKNOWN if door is Door.CLOSED else Level.DEGRADED


def _configuration(config: Path | None) -> Finding:
    # Here, as it brings pydantic; whoever has read a configuration has it loaded already
    from expedited.config import DEFAULT_FILE

    named = config or (Path(os.environ["EXPEDITED_CONFIG"]) if os.environ.get("EXPEDITED_CONFIG") else None)
    file = named or DEFAULT_FILE
    variables = sum(1 for name in os.environ if name.startswith("EXPEDITED_") and name != "EXPEDITED_CONFIG")
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

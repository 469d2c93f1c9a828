"""The container runtime: where its state is, its programs, containerd and NRI."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from expedited.doctor import nri
from expedited.doctor.finding import Area, Finding, Level
from expedited.doctor.knock import ANSWER_SECONDS, Door, knock
from expedited.settings import AgentSettings

__all__ = ["look"]

# What the first release with NRI's present protocol has, and what Debian 13 has
_OLDEST_CONTAINERD = (1, 7)
_LOW_LEVEL = ("runc", "crun")
# Debian has runc in /usr/sbin, which is not on everybody's PATH
_MORE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)(\.\S+)?")


def look(settings: AgentSettings) -> Iterator[Finding]:
    """State directories, programs, containerd's socket, NRI."""
    yield _state_roots(settings.state_roots)
    yield _programs()
    containerd, pid, version = _containerd(settings)
    yield containerd
    yield nri.look(settings.nri_socket, pid, version)


# -- state directories -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Count:
    """Of the containers below one root; None: it is closed to this user."""

    containers: int | None
    namespaces: int = 0

    def __str__(self) -> str:
        if self.containers is None:
            return "closed to this user"
        several = f" in {self.namespaces} namespaces" if self.namespaces > 1 else ""
        return f"{self.containers} container{'' if self.containers == 1 else 's'}{several}"


def _state_roots(patterns: tuple[str, ...]) -> Finding:
    counts = {pattern: _count(pattern) for pattern in patterns}
    there = {pattern: count for pattern, count in counts.items() if count is not None}
    if not there:
        found, level = f"none of {', '.join(patterns)} is there yet", Level.DEGRADED
    else:
        found = ", ".join(f"{pattern}: {count}" for pattern, count in there.items())
        hidden = any(count.containers is None for count in there.values())
        level = Level.UNKNOWN if hidden else Level.OK
    return Finding(
        Area.RUNTIME,
        "state directories",
        found,
        level,
        "no container to gate until a runtime makes one (it is gated then); another place is never looked at",
        "start the runtime, or name its place: state-roots in the configuration (Helm: runtime.stateRoots); in a pod,"
        " mount the host's /run (Helm: runtime.stateDirs)",
    )


def _count(pattern: str) -> _Count | None:
    """None where there is no such directory."""
    base, star, _ = pattern.rstrip("/").partition("/*")
    try:
        parents = _directories(base) if star else [base]
        inside = [len(_directories(parent)) for parent in parents]
    except PermissionError:
        return _Count(None)
    except OSError:
        return None
    return _Count(sum(inside), sum(1 for number in inside if number))


def _directories(parent: str) -> list[str]:
    with os.scandir(parent) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


# -- programs ----------------------------------------------------------------------------------------------------------


def _programs() -> Finding:
    path = f"{os.environ.get('PATH', '')}:{_MORE_PATH}"
    places = {name: shutil.which(name, path=path) for name in ("containerd", *_LOW_LEVEL)}
    there = {name: place for name, place in places.items() if place}
    with ThreadPoolExecutor() as pool:  # at once, so that several that hang cost no more than one
        versions = pool.map(_version_of, there.values())
        found = [f"{name} {version} ({place})" for (name, place), version in zip(there.items(), versions, strict=True)]
    return Finding(
        Area.RUNTIME,
        "programs",
        ", ".join(found) or f"no containerd, {', '.join(_LOW_LEVEL)} on the path from here",
        Level.OK if any(places[name] for name in _LOW_LEVEL) else Level.UNKNOWN,
        "who executes a runtime is not held: new containers are gated by NRI's START hook, or by inotify",
        "nothing to do in a pod, which does not see the host's programs; else install containerd and runc",
    )


def _version_of(program: str) -> str:
    try:
        answer = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    version = _VERSION.search(answer)
    return version[0] if version else "of unknown version"


# -- containerd --------------------------------------------------------------------------------------------------------


def _containerd(settings: AgentSettings) -> tuple[Finding, int, tuple[int, int] | None]:
    """Its finding, pid (0: not known) and version."""
    path = settings.containerd_socket
    visit = knock(path) if path else None
    version: tuple[int, int] | None = None
    if visit is None:
        found, level = "off: no socket is configured", Level.OK
    elif visit.door is not Door.OPEN:
        found = f"{path}: {visit.door.value}"
        level = Level.UNKNOWN if visit.door is Door.CLOSED else Level.DEGRADED
    else:
        said, answered = _ask_version(settings)
        parts = _VERSION.search(said) if answered else None
        version = (int(parts[1]), int(parts[2])) if parts else None
        recent = version is not None and version >= _OLDEST_CONTAINERD
        found = f"{said} at {path}" if answered else said
        found += "" if recent or not answered else ": older than 1.7, or of unknown age"
        level = Level.OK if recent else Level.DEGRADED
    finding = Finding(
        Area.RUNTIME,
        "containerd",
        found,
        level,
        "kills are caught and struck all the same; pods' names, annotations and policies are not known",
        "containerd 1.7 or later; its socket in containerd-socket of the configuration; root",
    )
    return finding, visit.pid if visit else 0, version


def _ask_version(settings: AgentSettings) -> tuple[str, bool]:
    """What it says, or why it does not; and whether it did."""
    # Here, as gRPC takes 0.1 s to load, which is for nothing where there is no socket
    from expedited.containerd import ContainerdClient, ContainerdError

    async def ask() -> str:
        async with ContainerdClient(settings.containerd_socket, settings.cri_namespace) as client:
            return await asyncio.wait_for(client.version(), ANSWER_SECONDS)

    try:
        return asyncio.run(ask()), True
    except TimeoutError:
        return f"{settings.containerd_socket}: {Door.BUSY.value}", False
    except ContainerdError as error:
        return str(error), False

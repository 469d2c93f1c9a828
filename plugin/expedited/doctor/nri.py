"""Whether the runtime lets NRI plugins in.

Nobody knocks here: a runtime takes whoever connects for a plugin, and complains in its log about one that leaves. Who
listens is in /proc/net/unix, and why nobody does is in containerd's configuration.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from expedited.doctor.finding import Area, Finding, Level

__all__ = ["look"]

_DEFAULT_CONFIGURATION = "/etc/containerd/config.toml"
_PLUGIN = "io.containerd.nri.v1.nri"
# containerd 2.0 is the first to have NRI on where nothing is said
_ON_BY_DEFAULT = (2, 0)
_LISTENS = 0x10000  # __SO_ACCEPTCON of include/uapi/linux/net.h, as /proc/net/unix shows it


def look(socket: str, containerd_pid: int, version: tuple[int, int] | None) -> Finding:
    """One finding.

    Args:
        socket: Where NRI is expected; empty: off.
        containerd_pid: The daemon's, 0 if it is not known.
        version: The daemon's, None if it is not known.
    """
    found, level = _state(socket, containerd_pid, version)
    return Finding(
        Area.RUNTIME,
        "NRI",
        found,
        level,
        "containers are known a moment later, from containerd's events, and no START hook closes the last gap",
        f"disable = false below [plugins.'{_PLUGIN}'] in containerd's configuration, and restart it",
    )


def _state(socket: str, containerd_pid: int, version: tuple[int, int] | None) -> tuple[str, Level]:
    if not socket:
        return "off: no socket is configured", Level.OK
    try:
        there = Path(socket).is_socket()
    except PermissionError:
        return f"{socket}: closed to this user", Level.UNKNOWN
    # By the daemon's eyes, if it is known: in a pod without the host's network ours see the pod's own sockets only
    listened_at = _listened_at(containerd_pid or os.getpid())
    if there and listened_at is not None and os.path.realpath(socket) in listened_at:
        return f"the runtime listens at {socket}", Level.OK
    if there and (not containerd_pid or listened_at is None):
        return f"{socket} is there; whether anybody listens can't be told from here", Level.UNKNOWN
    what = f"{socket}: " + ("nobody is seen to listen" if there else "not there")
    return f"{what}; {_configured(containerd_pid, version)}", Level.DEGRADED


def _listened_at(pid: int) -> set[str] | None:
    """Where somebody listens in that process's network namespace; None: it can't be looked at."""
    try:
        text = Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape")
    except OSError:
        return None
    found = set()
    for line in text.splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path (proc_net(5))
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _LISTENS and fields[7].startswith("/"):
            found.add(os.path.realpath(fields[7]))
    return found


def _configured(containerd_pid: int, version: tuple[int, int] | None) -> str:
    """What containerd's configuration says about it."""
    # Through its root, as it may be in another mount namespace than we are
    root = f"/proc/{containerd_pid}/root" if containerd_pid else ""
    path = _configuration_of(containerd_pid)
    try:
        disabled = None
        for tables in _files(root, path):
            said = tables.get("plugins", {}).get(_PLUGIN, {}).get("disable")
            disabled = disabled if said is None else said
            if f"{_PLUGIN}" in tables.get("disabled_plugins", ()):
                return f"it is among disabled_plugins in {path}"
    except FileNotFoundError:
        where = f"there is no {path}"
    except OSError as error:
        return f"{path} can't be read ({error.strerror})"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
        return f"{path} is not as expected ({error})"
    else:
        if disabled is not None:
            return f"{path} has disable = {str(disabled).lower()}"
        where = f"{path} does not say"
    if version is None:
        return f"{where}, and containerd before 2.0 has it off by default"
    return f"{where}, and this containerd has it {'on' if version >= _ON_BY_DEFAULT else 'off'} by default"


def _configuration_of(containerd_pid: int) -> str:
    """The file that the daemon was started with."""
    try:
        words = Path(f"/proc/{containerd_pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        started_in = Path(f"/proc/{containerd_pid}/cwd").readlink()
    except OSError:
        return _DEFAULT_CONFIGURATION
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option in ("-c", "--config", "-config"):
            return str(started_in / (value if equals else following))
    return _DEFAULT_CONFIGURATION


def _files(root: str, path: str) -> Iterator[dict[str, Any]]:
    """The configuration and what it imports; later ones win."""
    tables = tomllib.loads(Path(root + path).read_text())
    yield tables
    for pattern in tables.get("imports", ()):
        # Relative ones are relative to the file (containerd cmd/containerd/server/config)
        whole = Path(path).parent / pattern
        for file in sorted(Path(f"{root}{whole.parent}").glob(whole.name)):
            yield tomllib.loads(file.read_text())

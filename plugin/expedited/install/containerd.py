"""Has NRI on in containerd: asks containerd itself how it is, and changes only what has to be changed.

containerd has NRI on since 2.0, and off in 1.7. Since 2.2.0 it reads /etc/containerd/conf.d/*.toml by itself; before, its
configuration must import them. Nothing is restarted here: that is for whoever runs the node.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from expedited.errors import ExpeditedError
from expedited.install.record import Record
from expedited.install.texts import CONTAINERD_DROP_IN

__all__ = ["Daemon", "daemons", "turn_nri_on"]

_NRI = "io.containerd.nri.v1.nri"
_DUMP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Daemon:
    """One containerd of the node.

    Attributes:
        name: For messages, and the unit to restart.
        binary: Of containerd itself, as seen from our own root: it is run.
        config: Its configuration file, as seen from the node's root.
        drop_ins: Directories for drop-ins, by the configuration's version; as seen from the node's root.
        ours_to_edit: False where the configuration is written anew by its owner at each start.
    """

    name: str
    binary: str
    config: str
    drop_ins: dict[int, str]
    ours_to_edit: bool = True


def daemons(root: Path) -> Iterator[Daemon]:
    """Those that are installed below ``root``; none where it has no containerd."""
    places = ("usr/bin", "usr/local/bin", "usr/sbin", "usr/local/sbin", "opt/bin")
    for binary in (root / place / "containerd" for place in places):
        if os.access(binary, os.X_OK):
            folder = "/etc/containerd/conf.d"
            yield Daemon("containerd", str(binary), "/etc/containerd/config.toml", {2: folder, 3: folder, 4: folder})
            break
    for name in ("k3s", "rke2"):
        home = f"/var/lib/rancher/{name}"
        etc = f"{home}/agent/etc/containerd"
        binary = root / home.lstrip("/") / "data/current/bin/containerd"
        if name == "rke2":
            binary = next((root / home.lstrip("/")).glob("data/*/bin/containerd"), binary)
        if os.access(binary, os.X_OK):
            folders = {2: f"{etc}/config.toml.d", 3: f"{etc}/config-v3.toml.d"}
            yield Daemon(name, str(binary), f"{etc}/config.toml", folders, ours_to_edit=False)


def turn_nri_on(daemon: Daemon, record: Record) -> bool:
    """Make sure of NRI; True where the daemon's configuration was changed, and it has to be restarted.

    Raises:
        ExpeditedError: that can't be done from here; says what to write where. Nothing is left of the attempt.
    """
    version, on = _ask(daemon, record.root)
    folder = daemon.drop_ins.get(version, daemon.drop_ins[max(daemon.drop_ins)])
    drop_in = f"{folder}/10-expedited.toml"
    if on and drop_in not in record.files:
        record.say(f"{daemon.name}: NRI is on, its configuration is left alone")
        return False
    before = {*record.files, *record.lines, *record.replaced}
    changed = record.put(drop_in, CONTAINERD_DROP_IN)
    try:
        if daemon.ours_to_edit and not _ask(daemon, record.root)[1]:
            changed = _import_drop_ins(daemon, record) or changed
        if daemon.ours_to_edit and not _ask(daemon, record.root)[1]:
            raise ExpeditedError(
                f"{daemon.name}: NRI stays off, {daemon.config} goes before {drop_in}: "
                f"set disable = false below [plugins.'{_NRI}'] there"
            )
    except ExpeditedError:
        for path in {*record.lines, *record.replaced, *record.files} - before:
            record.take_back(path)
        raise
    return changed


def _import_drop_ins(daemon: Daemon, record: Record) -> bool:
    """Have the configuration read its drop-ins, where it does not by itself (before 2.2.0)."""
    target = record.root / daemon.config.lstrip("/")
    if not target.exists():
        return record.put(daemon.config, f"version = 2\n{_import_line(record.root)}\n")
    text = target.read_text(encoding="utf-8")
    imports = tomllib.loads(text).get("imports")
    if not isinstance(imports, list | None):
        raise ExpeditedError(f"{daemon.name}: imports is no list in {daemon.config}: mend that, and try again")
    if imports and not any(fnmatch("/etc/containerd/conf.d/10-expedited.toml", str(each)) for each in imports):
        raise ExpeditedError(
            f'{daemon.name}: {daemon.config} has imports of its own: add "conf.d/*.toml" to them, and try again'
        )
    if imports is None:
        return record.add_line(daemon.config, _import_line(record.root))
    empty = next((line for line in text.splitlines() if re.fullmatch(r"imports\s*=\s*\[\s*\]\s*(#.*)?", line)), None)
    if imports or empty is None:
        return False
    record.replace_line(daemon.config, empty, _import_line(record.root))  # as `containerd config default` of 1.7 has it
    return True


def _import_line(root: Path) -> str:
    """Absolute, as 1.7.12 takes a relative one from wherever it was started; relative where that would be another root's."""
    folder = "/etc/containerd/conf.d" if root == Path("/") else "conf.d"
    return f'imports = ["{folder}/*.toml"]  # by `expedited install`'


def _ask(daemon: Daemon, root: Path) -> tuple[int, bool]:
    """The version of its configuration file, and whether NRI is on with everything that it imports."""
    path = root / daemon.config.lstrip("/")
    written = _read(path) if path.exists() else {}
    command = [daemon.binary, "--config", str(path), "config", "dump"]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DUMP_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise ExpeditedError(f"{daemon.name}: {daemon.binary} can't be asked about its configuration") from problem
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ExpeditedError(f"{daemon.name}: {' '.join(command)} fails: {_plain(said)}")
    try:
        effective = tomllib.loads(answer.stdout)
        nri = effective.get("plugins", {}).get(_NRI)
        on = nri is not None and not nri.get("disable", False) and _NRI not in effective.get("disabled_plugins", ())
        return int(written.get("version") or effective.get("version", 2)), on
    except (ValueError, TypeError, AttributeError) as problem:
        raise ExpeditedError(
            f"{daemon.name}: {path}, or what is printed of it, is no configuration: {problem}"
        ) from problem


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:  # no UTF-8 either
        raise ExpeditedError(f"{path} is not TOML: {problem}") from problem


def _plain(line: str) -> str:
    return re.sub(r"\s+", " ", line)[:300]

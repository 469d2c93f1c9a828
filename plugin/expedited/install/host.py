"""``expedited install``: what goes onto a node without Kubernetes, in which order, and how it is taken back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from expedited.errors import ExpeditedError, UsageError
from expedited.install.containerd import daemons, turn_nri_on
from expedited.install.record import Record
from expedited.install.texts import NRI_PLUGIN, UNIT

__all__ = ["Starter", "install", "remove"]

_UNIT = "/etc/systemd/system/expedited.service"
_WANTED = "/etc/systemd/system/multi-user.target.wants/expedited.service"
_PLUGIN = "/opt/nri/plugins/10-expedited"


class Starter(StrEnum):
    """Who starts the agent; never both, as a node has one agent."""

    SYSTEMD = "systemd"  #: a unit; it serves every runtime, and outlives the restart of any
    NRI = "nri"  #: the runtime itself, as a pre-installed plugin: for nodes without systemd


def install(root: Path, starter: Starter | None, say: Callable[[str], None], program: str = "") -> None:
    """Put the agent in place; doing it again changes no file, and has a new version of the program run.

    Args:
        root: The node's root directory; not ``/``: an image's or a test's, where nothing is started.
        starter: Who is to start it; None: systemd where it runs, else NRI.
        say: Takes a line about each thing that was done.
        program: Where `expedited` is on the node; empty: where this one is.

    Raises:
        ExpeditedError: something can't be done; nothing that was made for it is left.
    """
    record = _record(root, say)
    program = program or _own_program()
    if starter is None:
        starter = Starter.SYSTEMD if (root / "run/systemd/system").is_dir() else Starter.NRI
    other = _PLUGIN if starter is Starter.SYSTEMD else _UNIT
    if other in record.files:
        raise UsageError(f"{other} is installed, and a node has one agent: `expedited install --remove` first")
    fresh = record.empty
    try:
        restart = [daemon.name for daemon in daemons(root) if turn_nri_on(daemon, record)]
        changed = _put_starter(record, starter, program)
        if starter is Starter.SYSTEMD and _systemd_is_ours(root):
            _systemctl("daemon-reload")
            _systemctl("restart", "expedited.service")  # its program may be a new one, of the same path
            say("started expedited.service anew")
    except BaseException as problem:
        if fresh:
            _take_all_back(record)
        if isinstance(problem, OSError):
            raise _refused(problem) from problem
        raise
    if starter is Starter.NRI and changed:
        restart = restart or [daemon.name for daemon in daemons(root)]
    if not (changed or restart):
        if not record.left:
            say("everything was in place already")
        if starter is Starter.NRI:
            for daemon in daemons(root):
                say(
                    f"a new version of the program runs once {daemon.name} is restarted: systemctl restart {daemon.name}"
                )
    for name in restart:
        say(f"restart {name} for this to take effect (its containers go on): systemctl restart {name}")


def remove(root: Path, say: Callable[[str], None]) -> None:
    """Take back everything that :func:`install` made; doing it again changes nothing.

    Raises:
        ExpeditedError: something can't be taken back.
    """
    record = _record(root, say)
    if record.empty:
        record.close()
        say("nothing is installed")
        return
    if _UNIT in record.files and _systemd_is_ours(root):
        try:
            _systemctl("stop", "expedited.service")
            say("stopped expedited.service")
        except ExpeditedError as problem:
            say(f"{problem}; all else is taken back")  # its unit was removed by hand, say
    had_unit = _UNIT in record.files
    changed = {path for path in (*record.files, *record.lines, *record.replaced) if path.endswith(".toml")}
    had_plugin = _PLUGIN in record.files
    try:
        _take_all_back(record)
    except OSError as problem:
        raise _refused(problem) from problem
    if had_unit and _systemd_is_ours(root):
        _systemctl("daemon-reload")
    if changed or had_plugin:
        say("the runtime goes by its configuration of before from its next restart on")


def _put_starter(record: Record, starter: Starter, program: str) -> bool:
    if starter is Starter.NRI:
        return record.put(_PLUGIN, NRI_PLUGIN.format(program=program), mode=0o755)
    changed = record.put(_UNIT, UNIT.format(program=program))
    return record.link(_WANTED, _UNIT) or changed


def _take_all_back(record: Record) -> None:
    # The starter first, the runtime's configuration last: the other way round than they came
    for path in [*reversed(record.files), *reversed(record.lines), *reversed(record.replaced)]:
        record.take_back(path)
    record.close()


def _refused(problem: OSError) -> ExpeditedError:
    """Of a file system that is read-only, or full."""
    return ExpeditedError(f"{problem.filename or 'a file'}: {problem.strerror}: it can't be changed")


def _record(root: Path, say: Callable[[str], None]) -> Record:
    if not root.is_absolute() or not root.is_dir():
        raise UsageError(f"--root {root}: give the absolute path of a directory")
    if not os.access(root, os.W_OK):
        raise ExpeditedError(f"{root} may not be written to: run this as root")
    return Record.read(root, say)


def _own_program() -> str:
    """Where this very `expedited` is: a unit must not depend on anybody's PATH."""
    name = sys.argv[0] if "/" in sys.argv[0] else shutil.which(sys.argv[0]) or ""
    path = os.path.abspath(name)  # noqa: PTH100 - a link is followed by nobody: it may be what is upgraded
    if not name or not os.access(path, os.X_OK) or any(letter in path for letter in " \t\"'\\%$"):
        raise ExpeditedError(
            f"{path or 'expedited'} can't be started by others: install it as /usr/local/bin/expedited"
        )
    return path


def _systemd_is_ours(root: Path) -> bool:
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _systemctl(*words: str) -> None:
    answer = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExpeditedError(f"systemctl {' '.join(words)} failed: {said}")

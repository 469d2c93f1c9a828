"""Connects the plugin to a runtime: dials its socket again and again, or takes over the one it was started with."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections.abc import MutableMapping

import structlog

from expedited.errors import UsageError
from expedited.nri.plugin import NriPlugin
from expedited.socket_path import refuse_if_too_long

__all__ = ["serve"]

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
# nri pkg/api/plugin.go: what a runtime starts its pre-installed plugins with, and nothing else
_SOCKET_VARIABLE, _NAME_VARIABLE, _IDX_VARIABLE = "NRI_PLUGIN_SOCKET", "NRI_PLUGIN_NAME", "NRI_PLUGIN_IDX"

_log = structlog.get_logger(__name__)


async def serve(
    plugin: NriPlugin,
    socket_path: str,
    *,
    stop: asyncio.Event,
    environ: MutableMapping[str, str] = os.environ,
) -> None:
    """Keep the plugin connected until ``stop`` is set.

    Where a runtime started this process as a pre-installed plugin, the environment has the descriptor of its socket, and
    the name and index that the plugin goes by. Then there is only that one connection: it is over when the runtime
    closes it. The three variables are taken out of ``environ``, as they are not for our own children.

    Args:
        plugin: Who is connected.
        socket_path: The runtime's; it need not be there yet.
        stop: Set it to disconnect.
        environ: Where to look for the pre-installed plugin's variables.

    Raises:
        UsageError: the path is too long for a socket, or the environment's descriptor is not a runtime's socket.
    """
    inherited = _take_inherited(plugin, environ)
    if inherited is not None:
        session = plugin.open()
        await asyncio.get_running_loop().create_unix_connection(lambda: session.mux, sock=inherited)
        why = await session.run(stop)
        _log.info("the runtime that started this plugin has no more use for it", why=why)
        return
    refuse_if_too_long(socket_path, "NRI socket")
    await _dial_for_ever(plugin, socket_path, stop)


async def _dial_for_ever(plugin: NriPlugin, socket_path: str, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    pause_seconds = _FIRST_PAUSE_SECONDS
    said = ""
    while not stop.is_set():
        session, began = plugin.open(), loop.time()
        try:
            await loop.create_unix_connection(lambda: session.mux, socket_path)  # noqa: B023 - called before this returns
        except OSError as problem:
            why = _explain(socket_path, problem)
        else:
            why = await session.run(stop)
        if stop.is_set():
            return
        # A line when something changes, and none for the attempts between.
        if session.taken_in or why != said:
            _log.warning("no NRI connection: the agent goes on without, and tries again", socket=socket_path, why=why)
        said = why
        # A runtime that takes us in only to throw us out again is one that we must not pester either.
        if loop.time() - began > _LONGEST_PAUSE_SECONDS:
            pause_seconds = _FIRST_PAUSE_SECONDS
        # The agents of a rack whose nodes restart together need not come back in step.
        await _sleep(pause_seconds * random.uniform(0.5, 1.0), stop)
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, but no longer than until ``stop``."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


def _explain(socket_path: str, problem: OSError) -> str:
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"{socket_path} is not there: the runtime does not run, or has NRI off (`disable = true` in its settings)"
        )
    if problem.errno == errno.ECONNREFUSED:
        return f"nobody listens at {socket_path}: the runtime has ended, or has NRI off"
    if problem.errno in (errno.EACCES, errno.EPERM):
        return f"{socket_path} may not be used by uid {os.geteuid()}: NRI's socket is root's"
    return f"{socket_path}: {problem.strerror or problem}"


def _take_inherited(plugin: NriPlugin, environ: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that the runtime started us with, and the name that it gave us; None where none did."""
    number = environ.pop(_SOCKET_VARIABLE, "")
    name, idx = environ.pop(_NAME_VARIABLE, plugin.name), environ.pop(_IDX_VARIABLE, plugin.idx)
    if not number:
        return None
    plugin.identify(name, idx)
    wrong = f"{_SOCKET_VARIABLE}={number}: not the descriptor of a runtime's socket; unset it unless a runtime sets it"
    try:
        inherited = socket.socket(fileno=int(number))
    except (ValueError, OverflowError, OSError):
        raise UsageError(wrong) from None
    if inherited.family != socket.AF_UNIX or inherited.type != socket.SOCK_STREAM:
        inherited.detach()  # whatever it is, it is not ours to close
        raise UsageError(wrong)
    inherited.set_inheritable(False)
    return inherited

"""The gate's process: puts source, strikes and link together, and gets the process ready for a node under pressure."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from expedited import __version__
from expedited.errors import ExpeditedError
from expedited.settings import STATE_ROOTS
from expedited.striker import fanotify
from expedited.striker.gate import Gate
from expedited.striker.heartbeat import Heartbeat
from expedited.striker.log import Log
from expedited.striker.observer import Observer
from expedited.striker.oom import OomWatch
from expedited.striker.proc_connector import ProcConnector
from expedited.striker.roots import Roots, own_container_ids
from expedited.striker.server import Server, listen
from expedited.striker.source import Source
from expedited.striker.status import StrikerStatus
from expedited.striker.stops import Stops
from expedited.teardown.linux import be_realtime, lock_memory, mrelease_support
from expedited.teardown.policy import Policy
from expedited.teardown.roster import make_room_for_descriptors

__all__ = ["GATE_PRIORITY", "Options", "run"]

#: SCHED_RR priority of the gate's loop: above everything else of ours but its supervisor.
GATE_PRIORITY = 4
#: How long a strike in progress may go on when the striker is asked to end; the gate is open by then.
_LAST_STOPS_SECONDS = 5.0
_STACK_BYTES = 256 << 10
#: A worker that computes gives the gate's loop the interpreter after this long (Python's default is 5 ms).
_SWITCH_SECONDS = 0.0002

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


@dataclass(frozen=True, slots=True)
class Options:
    """The striker's command line.

    Attributes:
        policy: JSON, empty for the defaults.
        source: How kills are to be seen: ``gate``, ``observe``, or ``auto``: the gate where it can be had.
        log_format: Of the log that comes with these; told to who takes this striker over.
    """

    run_dir: str
    state_roots: tuple[str, ...]
    policy: str
    budget_seconds: float
    hold_executions: str
    source: str
    log_format: str


def run(options: Options, heartbeat: Heartbeat, log: Log) -> int:
    """Gate until SIGTERM.

    Returns:
        0 after SIGTERM, 1 when it can't work here, 2 for a wrong option.
    """
    _die_with_the_supervisor(heartbeat.supervisor_pid)
    try:
        policy = Policy.from_json(json.loads(options.policy)) if options.policy else Policy()
    except (ValueError, TypeError, RecursionError) as error:
        log.error(f"--policy {options.policy}: {error}; see docs/architecture.md for its fields")
        return 2
    sys.setswitchinterval(_SWITCH_SECONDS)
    threading.stack_size(_STACK_BYTES)
    make_room_for_descriptors()
    # One that comes before there is a loop that it could end waits for it: the socket must not be left behind
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    path = f"{options.run_dir}/striker.sock"
    try:
        listener = listen(path)
    except ExpeditedError as error:
        log.error(str(error))
        return 1
    try:
        stops = _until_told(options, policy, listener, heartbeat, log)
    finally:
        # Where somebody was before us, the strikes in progress have an end to come to all the same
        with suppress(FileNotFoundError):
            os.unlink(path)
    if stops is None:
        return 1
    threading.Thread(target=_keep_beating, args=(heartbeat,), daemon=True).start()
    stops.wait_until_idle(_LAST_STOPS_SECONDS)
    stops.close()
    return 0


def _until_told(
    options: Options, policy: Policy, listener: socket.socket, heartbeat: Heartbeat, log: Log
) -> Stops | None:
    """See kills and strike until SIGTERM; the source is closed then, strikes may be in progress. None: it can't work here."""
    # From here on nothing may fork: a copy of the group's descriptor in a child would keep a dead gate shut.
    opened = _open(options, log)
    if opened is None:
        return None
    try:
        roots = _roots(opened, options, log)
    except OSError as error:
        log.error(
            f"no inotify instance to follow the runtimes' directories by ({error.strerror}): raise the sysctl"
            " fs.inotify.max_user_instances; see `expedited doctor`"
        )
        return None
    server = Server(listener, log)
    stops = Stops(server.publish, server.stop_began, log)
    stops.default = policy
    source = _source(opened, roots, stops, heartbeat, options, log)
    signal.signal(signal.SIGTERM, lambda *_: source.stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    locked, realtime = _lock_memory(log), be_realtime(GATE_PRIORITY)
    striker = _Striker(options, source, roots, stops, heartbeat, time.time(), locked, realtime)
    heartbeat.beat()  # from the first mark on somebody may be held
    roots.scan()
    server.start(stops, roots, striker.status)  # who is told that the gate is up may rely on it
    if mrelease_support().available:
        OomWatch(roots, stops.on_oom).start()
    gc.collect()
    gc.freeze()
    gc.disable()  # no pause between gate and strike; an idle worker collects
    with suppress(OSError):  # whoever wanted to read it may be gone by the time a later gate says it
        print(json.dumps({"ready": True, "pid": os.getpid(), "kernel": mrelease_support().describe()}), flush=True)
    try:
        source.run()
    finally:
        source.close()
    return stops


@dataclass(frozen=True, slots=True)
class _Striker:
    """What the gate's process is made of, as far as its status tells of it."""

    options: Options
    source: Source
    roots: Roots
    stops: Stops
    heartbeat: Heartbeat
    started_at: float
    memory_locked: bool
    realtime: bool

    def status(self) -> StrikerStatus:
        """How it is now."""
        counters = self.source.counters
        return StrikerStatus(
            version=__version__,
            pid=os.getpid(),
            supervisor_pid=os.getppid(),
            started_at=self.started_at,
            source=self.source.name,
            kernel=mrelease_support().describe(),
            realtime=self.realtime,
            memory_locked=self.memory_locked,
            gated=tuple(sorted({os.path.basename(directory) for directory in self.roots.marked})),
            binaries=tuple(sorted(self.roots.binaries)),
            events=counters.events,
            kills=counters.kills,
            executions=counters.executions,
            overruns=counters.overruns,
            lost=counters.lost,
            restarts=self.heartbeat.restarts,
            latency_p50_us=counters.latencies.percentile_us(0.5),
            latency_p99_us=counters.latencies.percentile_us(0.99),
            latency_counts=tuple(counters.latencies.counts),
            latency_sum_seconds=counters.latencies.sum_seconds,
            active=self.stops.active,
            stops=self.stops.number,
            wanted_source=self.options.source,
            budget_seconds=self.options.budget_seconds,
            state_roots=self.options.state_roots or STATE_ROOTS,
            log_format=self.options.log_format,
        )


def _open(options: Options, log: Log) -> int | ProcConnector | None:
    """The kernel's side of a source: a fanotify group for the gate, else what the observer needs; None: neither."""
    gate = "not wanted"
    if options.source != "observe":
        try:
            return _open_group(options.run_dir)
        except OSError as error:
            gate = f"fanotify permission events: {error.strerror}"
        if options.source == "gate":
            log.error(f"no kill gate: {gate}; see `expedited doctor`")
            return None
    try:
        connector = ProcConnector()
    except OSError as error:
        log.error(f"no kill gate: {gate}; and no observer: process events: {error.strerror}; see `expedited doctor`")
        return None
    if options.source == "auto":
        log.warning(
            f"source degraded: no kill gate: {gate}; kills are seen by the proc connector, once they have begun, and"
            " strikes follow them: see `expedited doctor`"
        )
    return connector


def _roots(opened: int | ProcConnector, options: Options, log: Log) -> Roots:
    spared = own_container_ids()
    # In a container of our own the binaries are not those that the node's runtimes are
    holds = options.hold_executions == "on" or (options.hold_executions == "auto" and not spared)
    group = opened if isinstance(opened, int) else None
    patterns = options.state_roots or STATE_ROOTS
    return Roots(group, patterns, spared, hold_executions=holds, complain=log.warning)


def _source(
    opened: int | ProcConnector, roots: Roots, stops: Stops, heartbeat: Heartbeat, options: Options, log: Log
) -> Source:
    if isinstance(opened, ProcConnector):
        return Observer(opened, roots, log, on_kill=stops.on_kill, on_deleted=stops.on_deleted, beat=heartbeat.beat)
    return Gate(
        opened,
        roots,
        on_kill=stops.on_kill,
        on_start=stops.on_start,
        on_deleted=stops.on_deleted,
        beat=heartbeat.beat,
        budget_seconds=options.budget_seconds,
    )


def _open_group(directory: str) -> int:
    group = fanotify.open_group()
    try:
        # A kernel without permission events makes the group all the same
        fanotify.mark_directory(group, directory)
        fanotify.unmark_directory(group, directory)
    except OSError:
        os.close(group)
        raise
    return group


def _die_with_the_supervisor(supervisor_pid: int) -> None:
    """A gate without its supervisor could hang unseen: SIGKILL it in that case, which opens it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor_pid:
        os._exit(70)  # it died before the call


def _lock_memory(log: Log) -> bool:
    try:
        lock_memory()
    except OSError as error:
        log.warning(
            f"memory not locked ({error.strerror}): under pressure a strike may wait for its own pages; see `expedited doctor`"
        )
        return False
    return True


def _keep_beating(heartbeat: Heartbeat) -> None:
    while True:
        heartbeat.beat()
        time.sleep(0.1)

"""What follows a kill that the source has seen: which container, what policy, the strike, the report.

Runs in worker threads, one for each stop in progress; the source's loop never waits for any of this.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue

from expedited.errors import ExpeditedError
from expedited.striker.container import Container, read_container
from expedited.striker.graces import Graces
from expedited.striker.log import Log
from expedited.striker.source import Kill
from expedited.teardown.cgroup import Cgroup, TargetError
from expedited.teardown.dying import reap_dying
from expedited.teardown.linux import be_realtime
from expedited.teardown.policy import Mode, Order, PageCache, Policy
from expedited.teardown.reap import STRIKER_PRIORITY, Reapers
from expedited.teardown.report import Outcome, Report
from expedited.teardown.strike import Strike

__all__ = ["Stops"]

_REPORTS_KEPT = 256
_WORKERS_AT_MOST = 64
_WORKERS_KEPT = 2
_IDLE_SECONDS = 10.0
# What images ask to be stopped by (STOPSIGNAL): most by SIGTERM; SIGQUIT nginx, SIGINT PostgreSQL, SIGWINCH httpd, and systemd the last
_STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGWINCH, signal.SIGRTMIN + 3))

_Identity = tuple[int, int, int]


class Stops:
    """All stops of the node.

    Args:
        publish: Takes every report, in the order in which the stops end, and says whether anybody was there to hear it;
            called from worker threads.
        on_began: Takes a container id and a signal: SIGTERM when its grace period runs, SIGKILL when its kill has passed.
        log: What a person is told by.
    """

    def __init__(self, publish: Callable[[Report], bool], on_began: Callable[[str, int], None], log: Log) -> None:
        self.default = Policy()
        self.policies: dict[str, Policy] = {}
        self.leaving: set[str] = set()
        self.reports: deque[Report] = deque(maxlen=_REPORTS_KEPT)
        self.number = 0
        self.heard_up_to = 0  # the last report that an agent has taken: no news to the next one
        self._publish = publish
        self._on_began = on_began
        self._log = log
        self._known: dict[_Identity, Container] = {}  # by its state file
        self._state_files: dict[str, _Identity] = {}  # by the container's directory
        self._graces = Graces(self.policy_of, self._is_being_struck, self._keep, log)
        self._active: set[str] = set()
        self._lock = threading.Lock()
        self._order = threading.Lock()  # reports are told in the order of their numbers
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._workers = 0
        self._idle = 0
        self._reapers = Reapers()
        for _ in range(_WORKERS_KEPT):
            self._hire()

    # -- called by the source's loop: must return at once ----------------------------------------------------------------

    def on_kill(self, kill: Kill) -> None:
        """A kill was seen; at the gate it is held there."""
        self.submit(lambda: self._handle(kill))

    def on_start(self, cmdline: bytes, descriptor: int) -> None:
        """A runtime command that is no kill has passed: `start` is the moment to learn what the container is."""
        if b"\0start\0" in cmdline:
            try:
                copy = os.dup(descriptor)
            except OSError:
                return  # no descriptors left: its kill will read the file
            self.submit(lambda: self._learn(copy))

    def on_deleted(self, directory: str) -> None:
        """The runtime has removed a container's directory."""
        state_file = self._state_files.pop(directory, None)
        if state_file is not None:
            self._known.pop(state_file, None)
        self._graces.forget(directory)
        self.forget(os.path.basename(directory))

    def forget(self, container_id: str) -> None:
        """Nothing that was told of it holds any more."""
        self.policies.pop(container_id, None)
        self.leaving.discard(container_id)

    def submit(self, work: Callable[[], None]) -> None:
        """Have a worker do it; one more is made when all are busy, up to a limit."""
        self._work.put(work)
        if self._idle <= self._work.qsize() and self._workers < _WORKERS_AT_MOST:
            self._hire()

    @property
    def active(self) -> int:
        """Stops in progress."""
        return len(self._active)

    def policy_of(self, container_id: str) -> Policy:
        """What may be done to it, with page cache AUTO decided: drop only for a pod that goes for good."""
        policy = self.policies.get(container_id, self.default)
        if policy.page_cache is PageCache.AUTO:
            decided = PageCache.DROP if container_id in self.leaving else PageCache.KEEP
            policy = replace(policy, page_cache=decided)
        return policy

    def strike_now(self, container: Container | None, cgroup: Cgroup, policy: Policy, trigger: str) -> Report:
        """A strike that no runtime asked for: `expedited kill` and the control API.

        Raises:
            TargetError: the cgroup must not be struck, or a stop of it is in progress.
        """
        cgroup.refuse_if_not_a_containers()
        key = container.directory if container else cgroup.procs_dir
        container_id = container.id if container else ""
        if not self._begin(key):
            raise TargetError(f"{container_id or cgroup.path}: a stop of it is in progress already")
        try:
            roster, boost = self._graces.take(key) or (None, None)
            one = Strike(
                cgroup,
                replace(policy, mode=Mode.STRIKE, min_size_bytes=0),
                init_pid=container.init_pid if container else None,
                container_id=container_id,
                trigger=trigger,
                reapers=self._reapers,
                roster=roster,
                boost=boost,
            )
            try:
                one.signal()
            finally:
                report = one.finish()
            return self._keep(report)
        finally:
            self._end(key)

    def on_oom(self, container: Container, seen: float) -> None:
        """The kernel kills in a container that is out of memory, or is about to."""
        self.submit(lambda: self._out_of_memory(container, seen))

    def close(self) -> None:
        """Put back what was lifted for those whose grace period runs: the process ends."""
        self._graces.close()

    # -- in a worker ---------------------------------------------------------------------------------------------------

    def _handle(self, kill: Kill) -> None:
        try:
            container = self._known.get(_identity(kill.descriptor))
            directory = container.directory if container else _directory(kill.descriptor)
            if not kill.command.ends(os.path.basename(directory)):
                return
            if container is None:
                container = self._read(directory, kill.descriptor)
            if kill.command.signal != 9:
                kill.answer()
                if kill.command.signal in _STOP_SIGNALS:
                    self._on_began(container.id, signal.SIGTERM)
                    self._prepare(container)
                return
            self._stop(kill, container)
        except ExpeditedError as error:
            self._log.warning(f"a kill was let through unstruck: {error}")
        finally:
            kill.release()

    def _stop(self, kill: Kill, container: Container) -> None:
        policy = self.policy_of(container.id)
        mode = policy.mode
        if mode is Mode.OFF or not self._is_running(container):
            return  # after init's exit the runtime's `kill --all` finds nobody: the memory is back already
        policy = policy.for_container(container.id)
        if not kill.held:
            policy = replace(policy, order=Order.FOLLOW)  # the runtime's own signal is on its way already
        if not self._begin(container.directory):
            return
        try:
            # Who only observes has no use for who is held, and is not to be waited for
            held = self._graces.take(container.directory, wait=policy.mode is not Mode.OBSERVE)
            roster, boost = held or (None, None)
            one = Strike(
                container.cgroup,
                policy,
                init_pid=container.init_pid,
                container_id=container.id,
                trigger=f"{'gate' if kill.held else 'observer'}:{kill.command.verb}",
                runtime_kills=True,
                started=kill.seen,
                reapers=self._reapers,
                roster=roster,
                boost=boost,
            )
            try:
                if policy.mode is Mode.OBSERVE:
                    kill.release()
                one.signal()
                kill.release()
                if kill.held:
                    one.answered()
                self._on_began(container.id, signal.SIGKILL)
            finally:
                report = one.finish()
            self._keep(replace(report, mode=str(mode)) if mode is not Mode.STRIKE else report)
        finally:
            self._end(container.directory)

    def _out_of_memory(self, container: Container, seen: float) -> None:
        policy = self.policy_of(container.id)
        # A key of its own: the runtime's kill, if it comes meanwhile, is another stop
        key = _oom_key(container)
        if policy.mode in (Mode.OFF, Mode.OBSERVE) or not self._begin(key):
            return
        try:
            report = reap_dying(container.cgroup, policy, container_id=container.id, started=seen)
            if report is not None:
                self._keep(report)
        except ExpeditedError as error:
            self._log.warning(f"an OOM kill was left to the kernel: {error}")
        finally:
            self._end(key)

    def _prepare(self, container: Container) -> None:
        """Its grace period runs: hold its processes now, so that at the kill only the signals are left to be sent."""
        self._graces.begin(container)
        if not os.path.isdir(container.directory):
            self.on_deleted(container.directory)  # it was quicker than we, and nobody would let go of them

    def _is_being_struck(self, container: Container) -> bool:
        keys = (container.directory, _oom_key(container), container.cgroup.procs_dir)
        return any(key in self._active for key in keys)

    def _is_running(self, container: Container) -> bool:
        """By init's pidfd where that is held in advance: a look at its /proc/PID/stat takes 60 us of a kill's time."""
        return self._graces.holds(container.directory, container.init_pid) or container.is_running()

    def _read(self, directory: str, descriptor: int) -> Container:
        """The state file; at a kill it was learnt already when the container was started, if the file is the same still."""
        identity = _identity(descriptor)
        container = read_container(directory, descriptor)
        earlier = self._state_files.get(directory)
        if earlier is not None:
            self._known.pop(earlier, None)
        self._state_files[directory] = identity
        self._known[identity] = container
        return container

    def _learn(self, descriptor: int) -> None:
        try:
            self._read(_directory(descriptor), descriptor)
        except (ExpeditedError, OSError):
            pass  # its kill, if one comes, will read the file again and say what is wrong with it
        finally:
            os.close(descriptor)

    def _keep(self, report: Report) -> Report:
        with self._order:
            self.number += 1
            report = replace(report, number=self.number)
            self.reports.append(report)
            heard = self._publish(report)
        if not heard and report.outcome is not Outcome.SKIPPED:
            self._log.info(_line(report))  # the agent tells of it, where there is one
        return report

    def _begin(self, key: str) -> bool:
        with self._lock:
            if key in self._active:
                return False
            self._active.add(key)
            return True

    def _end(self, key: str) -> None:
        with self._lock:
            self._active.discard(key)

    # -- the workers ---------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        with self._lock:
            self._workers += 1
        try:
            threading.Thread(target=self._run, name=f"worker-{self._workers}", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._workers -= 1  # no more threads to be had: those there are do it one after the other

    def _run(self) -> None:
        be_realtime(STRIKER_PRIORITY)
        while True:
            with self._lock:
                self._idle += 1
            try:
                work = self._work.get(timeout=_IDLE_SECONDS)
            except Empty:
                if not self._active:
                    gc.collect()  # automatic collection is off in this process
                with self._lock:
                    if self._workers > _WORKERS_KEPT:
                        self._workers -= 1
                        return
                continue
            finally:
                with self._lock:
                    self._idle -= 1
            try:
                work()
            except Exception as error:
                self._log.error(f"a stop could not be handled: {type(error).__name__}: {error}")


def _identity(descriptor: int) -> _Identity:
    """What a state file that was written anew, or another container's, does not have in common with this one."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _directory(descriptor: int) -> str:
    return os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))


def _oom_key(container: Container) -> str:
    return f"oom:{container.directory}"


def _line(report: Report) -> str:
    back = "?" if report.memory_back_seconds is None else f"{report.memory_back_seconds * 1000:.0f} ms"
    gone = "not gone" if report.gone_seconds is None else f"gone after {report.gone_seconds * 1000:.0f} ms"
    name = report.container_id or report.cgroup
    order = f" ({report.order})" if report.order else ""
    return (
        f"{name} {report.outcome}{order}: {report.bytes_returned >> 20} MiB back after {back}, {gone}; {report.trigger}"
    )


def wait_until_idle(stops: Stops, seconds: float) -> None:
    """Let the stops in progress end, for at most that long."""
    give_up_at = time.monotonic() + seconds
    while stops.active and time.monotonic() < give_up_at:
        time.sleep(0.02)

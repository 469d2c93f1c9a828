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

from expedited.errors import ExpeditedError
from expedited.striker.container import Container, InitGone, directory_of_state
from expedited.striker.graces import Graces
from expedited.striker.known import Known
from expedited.striker.log import Log
from expedited.striker.source import Kill
from expedited.striker.workers import AT_MOST, Workers
from expedited.teardown.cgroup import Cgroup, TargetError
from expedited.teardown.dying import reap_dying
from expedited.teardown.policy import Mode, Order, PageCache, Policy
from expedited.teardown.reap import Reapers
from expedited.teardown.receipt import Story
from expedited.teardown.report import Outcome, Report
from expedited.teardown.strike import Strike

__all__ = ["Stops"]

_REPORTS_KEPT = 256
#: How long a kill that is only observed is followed, whatever a strike's deadline is; unless there are as many stops at once, each
#: of which has a worker.
_OBSERVED_SECONDS = 900.0
_OBSERVED_AT_LENGTH = AT_MOST // 2
# What images ask to be stopped by (STOPSIGNAL): most by SIGTERM; SIGQUIT nginx, SIGINT PostgreSQL, SIGWINCH httpd, and systemd the last
_STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGWINCH, signal.SIGRTMIN + 3))

# Where podman, CRI-O and people keep their containers. They take a kill for failed that comes to one who is dead: podman forgets
# that the container was to be stopped, and starts it again where it has a restart policy. containerd's shims do not.
_WITHOUT_A_SHIM = ("/run/runc", "/run/crun")

_OBSERVED = "observed:"


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
        self._known = Known()
        self._graces = Graces(self.policy_of, self._is_being_struck, self._keep, log)
        self._active: set[str] = set()
        self._lock = threading.Lock()
        self._order = threading.Lock()  # reports are told in the order of their numbers
        self._reapers = Reapers()
        self._workers = Workers(log, self._at_ease)

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
        self._known.forget(directory)
        self.forget(os.path.basename(directory))
        # Not by the loop: those who ask in turns hold that lock at a lower priority, and strikes may go before them for seconds
        self.submit(lambda: self._graces.forget(directory))

    def forget(self, container_id: str) -> None:
        """Nothing that was told of it holds any more."""
        self.policies.pop(container_id, None)
        self.leaving.discard(container_id)

    def submit(self, work: Callable[[], None]) -> None:
        """Have a worker do it."""
        self._workers.submit(work)

    @property
    def active(self) -> int:
        """Stops in progress."""
        return len(self._active)

    @property
    def striking(self) -> int:
        """Those of them that are more than looked at."""
        with self._lock:
            return sum(not key.startswith(_OBSERVED) for key in self._active)

    def wait_until_idle(self, seconds: float) -> None:
        """Let the strikes in progress end, for at most that long."""
        give_up_at = time.monotonic() + seconds
        while self.striking and time.monotonic() < give_up_at:
            time.sleep(0.02)

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
            one = Strike(
                cgroup,
                replace(policy, mode=Mode.STRIKE, min_size_bytes=0),
                init_pid=container.init_pid if container else None,
                container_id=container_id,
                trigger=trigger,
                reapers=self._reapers,
                held=self._graces.take(key),
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
        container, directory = None, ""
        try:
            container = self._known.find(kill.descriptor)
            directory = container.directory if container else directory_of_state(kill.descriptor)
            if not directory or not kill.command.ends(os.path.basename(directory)):
                return  # crun's `delete` opens another file of the directory, too
            if container is None:
                container = self._known.learn(directory, kill.descriptor)
            if kill.command.signal != 9:
                kill.answer()
                if kill.command.signal in _STOP_SIGNALS:
                    self._on_began(container.id, signal.SIGTERM)
                    self._prepare(container)
                return
            self._stop(kill, container)
        except InitGone:
            pass  # the runtime clears up after one that has ended
        except (ExpeditedError, OSError) as error:
            kill.release()
            if kill.command.signal == 9:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._failed(kill, os.path.basename(directory), container, why)
        finally:
            kill.release()

    def _failed(self, kill: Kill, container_id: str, container: Container | None, why: str) -> None:
        """What can't be struck is let through, and told of like any other stop."""
        mode = self.policy_of(container_id).mode
        if mode is not Mode.OFF:
            report = Report(
                container_id=container_id,
                cgroup=container.cgroup.path if container else "",
                trigger=_trigger(kill),
                mode=str(mode),
                outcome=Outcome.FAILED,
                reason=why,
                started_at=Story(kill.seen).began_at,
            )
            self._keep(report)

    def _stop(self, kill: Kill, container: Container) -> None:
        policy = self.policy_of(container.id)
        mode = policy.mode
        if mode is Mode.OFF or not container.is_running():
            return  # after init's exit the runtime's `kill --all` finds nobody: the memory is back already
        policy = policy.for_container(container.id)
        if not kill.held or (policy.order is Order.AUTO and os.path.dirname(container.directory) in _WITHOUT_A_SHIM):
            policy = replace(policy, order=Order.FOLLOW)  # the runtime's own signal is on its way, or has to arrive
        if policy.mode is Mode.OBSERVE and self.active < _OBSERVED_AT_LENGTH:
            # What takes longer than any strike is just what there is to be measured
            policy = replace(policy, deadline_seconds=max(policy.deadline_seconds, _OBSERVED_SECONDS))
        # Who only observes is in nobody's way, for however long
        key = _observed_key(container) if policy.mode is Mode.OBSERVE else container.directory
        if not self._begin(key):
            return
        try:
            one = Strike(
                container.cgroup,
                policy,
                init_pid=container.init_pid,
                container_id=container.id,
                trigger=_trigger(kill),
                runtime_kills=True,
                started=kill.seen,
                reapers=self._reapers,
                # Who only observes has no use for who is held, and is not to be waited for
                held=self._graces.take(container.directory, wait=policy.mode is not Mode.OBSERVE),
            )
            try:
                if policy.mode is Mode.OBSERVE:
                    kill.release()
                one.signal()
                kill.release()
                if kill.answered_at is not None:
                    one.answered(kill.answered_at)
                self._on_began(container.id, signal.SIGKILL)
            except BaseException:
                kill.release()  # before all else: nobody waits at the gate for a strike that failed
                raise
            finally:
                report = one.finish()
            self._keep(replace(report, mode=str(mode)) if mode is not Mode.STRIKE else report)
        finally:
            self._end(key)

    def _out_of_memory(self, container: Container, seen: float) -> None:
        policy = self.policy_of(container.id)
        if policy.for_container(container.id).mode in (Mode.OFF, Mode.OBSERVE):
            return
        # A key of its own: the runtime's kill, if it comes meanwhile, is another stop
        key = _oom_key(container)
        if not self._begin(key):
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
        self._forget_if_gone(container.directory)

    def _forget_if_gone(self, directory: str) -> None:
        """Its end was quicker than we: nobody else would let go of what was just learnt."""
        if not os.path.isdir(directory):
            self.on_deleted(directory)

    def _is_being_struck(self, container: Container) -> bool:
        keys = (container.directory, _observed_key(container), _oom_key(container), container.cgroup.procs_dir)
        return any(key in self._active for key in keys)

    def _learn(self, descriptor: int) -> None:
        try:
            directory = self._known.learn_if_state(descriptor)
            if directory:
                self._forget_if_gone(directory)
        except (ExpeditedError, OSError):
            pass  # its kill, if one comes, will read the file again and say what is wrong with it
        finally:
            os.close(descriptor)

    def _at_ease(self) -> None:
        if not self._active:
            gc.collect()  # automatic collection is off in this process

    def _keep(self, report: Report) -> Report:
        with self._order:
            self.number += 1
            report = replace(report, number=self.number)
            self.reports.append(report)
            heard = self._publish(report)
        if not heard and report.outcome is not Outcome.SKIPPED:  # the agent tells of it, where there is one
            tell = self._log.warning if report.outcome is Outcome.FAILED else self._log.info
            tell(_line(report))
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


def _observed_key(container: Container) -> str:
    return f"{_OBSERVED}{container.directory}"


def _trigger(kill: Kill) -> str:
    return f"{'gate' if kill.held else 'observer'}:{kill.command.verb}"


def _oom_key(container: Container) -> str:
    return f"oom:{container.directory}"


def _line(report: Report) -> str:
    back = "?" if report.memory_back_seconds is None else f"{report.memory_back_seconds * 1000:.0f} ms"
    gone = "not gone" if report.gone_seconds is None else f"gone after {report.gone_seconds * 1000:.0f} ms"
    name = report.container_id or report.cgroup
    if report.outcome is Outcome.FAILED:
        return f"{name} was left to its runtime's own kill: {report.reason}; {report.trigger}"
    order = f" ({report.order})" if report.order else ""
    return (
        f"{name} {report.outcome}{order}: {report.bytes_returned >> 20} MiB back after {back}, {gone}; {report.trigger}"
    )

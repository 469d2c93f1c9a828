"""The agent's side of the striker: starts it or takes over one that runs, tells it policy, hears its reports.

The striker outlives an agent that crashes, and goes on striking by what it was last told. The next agent finds it at its
socket and takes it over; a striker of another version, or with other options, is replaced, with no more than the blink between
the two in which nobody gates (the runtime's own kill is then just what it was without us).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from expedited import __version__
from expedited.agent.waits import either, readable, unless
from expedited.errors import AlreadySaid, ExpeditedError, UsageError
from expedited.settings import STATE_ROOTS, AgentSettings
from expedited.striker.link import StrikerLink, StrikerUnreachable, Unreadable
from expedited.striker.status import StrikerStatus
from expedited.teardown.pidfd import Pidfd
from expedited.teardown.policy import Mode, Policy

__all__ = ["StrikerKeeper"]

# A little more than what its supervisor gives it: which of the two loses patience first has the better reason
_START_SECONDS = 35.0
# Until then nobody need be told: a start takes a tenth of a second on a node that has one to give
_LATE_SECONDS = 10.0
# A supervisor waits for 5 s at most before it starts another gate, which has as long as the first
_NEW_GATE_SECONDS = 5.0 + _START_SECONDS
_DIAL_EVERY_SECONDS = 0.02
_ANSWER_SECONDS = 5.0
_END_SECONDS = 10.0
_LAST_WORDS_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_POLICIES_A_PACKET = 200
_ENDED = "the striker has ended: it is being started anew"
_Message = dict[str, Any]


class _CannotGate(AlreadySaid):
    """A striker ended for good before it was ready, and said why: here it never will be."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the striker can't work here (it ended with code {code}): its own line says why")
        self.exit_code = code


_log = structlog.get_logger(__name__)


class StrikerKeeper:
    """Keeps one striker up and one link to it. Used from one event loop.

    Args:
        settings: The agent's.
        connected: Called with the striker's status after each new link, when it may be told things.
        linked: Called when there is a new link, before anything is heard on it.
        replacing: Awaited with the status of a striker that is to be ended in favour of another: the time to ask it for what it
            alone knows.
        heard: Called with everything it says that is no answer.

    Attributes:
        state: ``ok``, or in a few words why not.
        keep: Whether the striker stays when the agent ends; as the settings have it, until somebody says otherwise.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        connected: Callable[[StrikerStatus], None],
        heard: Callable[[_Message], None],
        linked: Callable[[], None] = lambda: None,
        replacing: Callable[[StrikerStatus], Awaitable[None]] | None = None,
    ) -> None:
        self.state = "starting"
        self.supervisor_pid = 0
        self.pid = 0
        self.connections = 0  #: how often there was a new link
        self.keep = settings.keep_striker
        self._settings = settings
        self._connected = connected
        self._heard = heard
        self._linked = linked
        self._replacing = replacing
        self._link: StrikerLink | None = None
        self._waiting: dict[int, asyncio.Future[_Message]] = {}
        self._lost = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # By pid, which alone could be somebody else's by the time that it is to end: ours, and one that was there before
        self._supervisors: dict[int, Pidfd] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; then the striker ends too, unless it is to be kept.

        Raises:
            ExpeditedError: the very first striker says that it can never work here.
        """
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not stop.is_set():
                try:
                    # A start takes seconds on a busy node, and is not to be waited for by who wants an end
                    if await unless(stop, self._connect()):
                        pause = _FIRST_PAUSE_SECONDS
                        await either(self._lost.wait(), stop.wait())
                except ExpeditedError as problem:
                    if isinstance(problem, _CannotGate) and not self.pid:
                        raise
                    self._not_caught(str(problem))
                except (OSError, RuntimeError) as problem:
                    # No process, thread or descriptor left for one: the node is under pressure, and that passes
                    self._not_caught(f"the striker can't be started ({getattr(problem, 'strerror', None) or problem})")
                finally:
                    # One that ends with us has yet to tell how its last strikes went
                    if not stop.is_set() or self.keep:
                        self._hang_up()
                if not stop.is_set():
                    await either(stop.wait(), asyncio.sleep(pause))
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            if not self.keep:
                await self._end()
            self._hang_up()
            self._supervisors.clear()
            self.state = "closed"

    def _not_caught(self, why: str) -> None:
        if self.state != why:
            _log.error(f"kills are not caught: {why}")
        self.state = why

    def tell(self, do: str, **fields: Any) -> None:
        """Say something that needs no answer; dropped when there is no striker, who asks anew when there is one."""
        if self._link is None:
            return
        with contextlib.suppress(StrikerUnreachable):
            self._send(self._link, do, fields)

    def tell_policies(self, policies: Mapping[str, Policy], *, default: Policy | None = None) -> None:
        """Policies by container id; with a ``default`` they are all that there are."""
        items = iter(policies.items())
        # Together with the first of the exceptions, which are all that there are on most nodes: a default alone, for however
        # short, would be one that they forbid
        first: _Message = {} if default is None else {"default": default.to_json(), "replace": True}
        while (batch := dict(itertools.islice(items, _POLICIES_A_PACKET))) or first:
            self.tell("policy", **first, containers={name: policy.to_json() for name, policy in batch.items()})
            first = {}

    async def ask(self, do: str, *, timeout_seconds: float = _ANSWER_SECONDS, **fields: Any) -> _Message:
        """Ask, and wait for the answer.

        Raises:
            StrikerUnreachable: there is no striker, or it did not answer in time.
            ExpeditedError: it refuses; UsageError where what was asked is wrong.
        """
        if self._link is None:
            raise StrikerUnreachable(f"there is no striker now ({self.state}): see `expedited doctor`")
        number = self._send(self._link, do, fields)
        answer: asyncio.Future[_Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(timeout_seconds):
                message = await answer
        except TimeoutError:
            raise StrikerUnreachable(f"the striker did not answer `{do}` within {timeout_seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if message["is"] == "refused":
            kind = UsageError if message.get("code") == UsageError.exit_code else ExpeditedError
            raise kind(message["why"])
        return message

    async def status(self) -> StrikerStatus:
        """How the striker is, with the ids of all that it gates.

        Raises:
            StrikerUnreachable: there is no striker, or it did not answer in time.
        """
        status = StrikerStatus.from_json(await self.ask("status"))
        gated, more = list(status.gated), status.gated_beyond > 0
        while more:
            answer = await self.ask("gated", after=gated[-1])
            gated += answer["ids"]
            more = answer["more"]
        return replace(status, gated=tuple(gated), gated_beyond=0)

    # -- the link ------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        link = self._dial() or await self._dial_until(_NEW_GATE_SECONDS, self._supervisors_ended) or await self._start()
        status = await self._take(link)
        other = {} if status.version == __version__ else {"found": status.version, "ours": __version__}
        differs = [] if other else _other_options(status, self._settings)
        if other or differs:
            what = "of another version" if other else f"that was started with other options: {', '.join(differs)}"
            _log.info(f"replacing a striker {what}", **other)
            await self._replace(status)
            status = await self._take(await self._start())
        self.state = "ok"
        self.connections += 1
        what = "the kill gate is up" if status.holds else "the observer is up: nobody is held"
        _log.info(what, source=status.source, kernel=status.kernel, pid=self.pid)
        self._connected(status)

    async def _replace(self, status: StrikerStatus) -> None:
        """End it, once it has told what nobody has heard; on the same link it tells how its last strikes went."""
        if self._replacing is not None:
            try:
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._replacing(status)
            except (ExpeditedError, TimeoutError, KeyError, TypeError, ValueError) as problem:
                # Whatever its version makes of the question, it is not to stay for that
                _log.warning("what it did while nobody listened is not known", error=repr(problem))
        await self._end()
        self._hang_up()

    def _dial(self) -> StrikerLink | None:
        try:
            return StrikerLink.connect(self._settings.striker_socket, blocking=False)
        except StrikerUnreachable:
            return None

    async def _start(self) -> StrikerLink:
        settings = self._settings
        command = [
            *(sys.executable, "-P", "-m", "expedited.striker"),
            f"--run-dir={settings.run_dir}",
            # Annotations may forbid what the default allows, and are told as soon as they are known
            f"--policy={json.dumps(_cautious(settings.policy).to_json())}",
            f"--source={settings.source}",
            f"--budget={settings.budget_seconds}",
            f"--log-format={settings.log_format}",
            *(f"--state-root={root}" for root in settings.state_roots),
        ]
        # Not asyncio's, which wants a thread for each: where none can be made it raises, and what it has started goes on
        self._process = process = subprocess.Popen(  # noqa: ASYNC220
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the agent, which ends it in its own time
        )
        self._hold_supervisor(process.pid)
        has_ended: Callable[[], bool] = lambda: process.poll() is not None  # noqa: E731
        link = await self._dial_until(_LATE_SECONDS, has_ended)
        if link is None and not has_ended():
            self._not_caught(f"the striker is not ready after {_LATE_SECONDS:g} s: it is waited for")
            link = await self._dial_until(_START_SECONDS - _LATE_SECONDS, has_ended)
        if link is not None:
            return link
        if process.returncode is None:
            process.kill()
            await readable(self._supervisors[process.pid].number, _END_SECONDS)
            raise ExpeditedError(f"the striker was not ready within {_START_SECONDS:g} s: see `expedited doctor`")
        if process.returncode < 0:
            raise ExpeditedError(f"the striker was ended by signal {-process.returncode} while it started")
        raise _CannotGate(process.returncode)

    async def _dial_until(self, seconds: float, hopeless: Callable[[], bool]) -> StrikerLink | None:
        """Dial again and again; None when it took too long, or there is nobody who could still begin to listen."""
        give_up_at = asyncio.get_running_loop().time() + seconds
        while True:
            # In this order: one that ends may have made way for another that listens
            no_hope = hopeless() or asyncio.get_running_loop().time() > give_up_at
            link = self._dial()
            if link is not None or no_hope:
                return link
            await asyncio.sleep(_DIAL_EVERY_SECONDS)

    async def _take(self, link: StrikerLink) -> StrikerStatus:
        """Make it ours; its status."""
        self._link = link
        self._lost.clear()
        self._linked()
        asyncio.get_running_loop().add_reader(link.fileno(), self._read)
        status = await self.status()
        self.pid, self.supervisor_pid = status.pid, status.supervisor_pid
        self._hold_supervisor(self.supervisor_pid)
        return status

    def _supervisors_ended(self) -> bool:
        """While one lives it brings up another gate, and a second striker would only be in its way."""
        if self._process is not None:
            self._process.poll()  # ours to be waited for
        self._supervisors = {pid: each for pid, each in self._supervisors.items() if not each.has_exited()}
        return not self._supervisors

    def _hold_supervisor(self, pid: int) -> None:
        # 0: its version does not tell: it can't be ended from here, and says so to who would take its place
        if pid and not (pid in self._supervisors and not self._supervisors[pid].has_exited()):
            with contextlib.suppress(ProcessLookupError):
                self._supervisors[pid] = Pidfd.open(pid)

    def _hang_up(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            asyncio.get_running_loop().remove_writer(self._link.fileno())
            self._link.close()
            self._link = None
            if self.state == "ok":
                self.state = "connection lost"
        self._give_up_waiting(_ENDED)

    def _send(self, link: StrikerLink, do: str, fields: _Message) -> int:
        waited = link.unsent
        try:
            number = link.send(do, **fields)
        except StrikerUnreachable:
            self._lost.set()
            raise
        if link.unsent and not waited:
            # More at once than the socket takes: a striker that is merely busy is not to be taken for one that has ended
            asyncio.get_running_loop().add_writer(link.fileno(), self._write, link)
        return number

    def _write(self, link: StrikerLink) -> None:
        try:
            link.flush()
        except StrikerUnreachable:
            self._lost.set()
        if not link.unsent or self._lost.is_set():
            asyncio.get_running_loop().remove_writer(link.fileno())

    def _give_up_waiting(self, why: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(StrikerUnreachable(why))

    def _read(self) -> None:
        assert self._link is not None
        try:
            while (message := self._link.receive()) is not None:
                answer = self._waiting.get(message.get("seq", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message)
                else:
                    self._heard(message)
        except StrikerUnreachable as problem:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._lost.set()
            if isinstance(problem, Unreadable) and self.state == "ok":
                _log.error(f"the link to the striker is made anew: {problem}")
            # At once: it would be waited for in vain
            self._give_up_waiting(str(problem) if isinstance(problem, Unreadable) else _ENDED)

    async def _end(self) -> None:
        """SIGTERM, which opens the gate and lets the strikes in progress end; SIGKILL when that takes too long."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._supervisors_ended():
                return
            for each in self._supervisors.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(each.number, number)
            await asyncio.gather(*(readable(each.number, _END_SECONDS) for each in self._supervisors.values()))
        self._supervisors_ended()


def _cautious(policy: Policy) -> Policy:
    return policy if policy.mode is Mode.OFF else replace(policy, mode=Mode.OBSERVE)


def _other_options(status: StrikerStatus, settings: AgentSettings) -> list[str]:
    """What it was started with and we would not start it with; what it does not tell of is taken to be right."""
    has_and_wants: tuple[tuple[str, object, object], ...] = (
        ("source", status.wanted_source, settings.source),
        ("budget", status.budget_seconds, settings.budget_seconds),
        ("state-roots", status.state_roots, settings.state_roots or STATE_ROOTS),
        ("log-format", status.log_format, settings.log_format),
    )
    return [f"{name} {_word(has)} and not {_word(wants)}" for name, has, wants in has_and_wants if has and has != wants]


def _word(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)

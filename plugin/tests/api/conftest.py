"""An agent in memory, behind the real API on a real socket."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from expedited.api.backend import ProcessStatus, Status, Target
from expedited.api.client import ApiClient
from expedited.api.server import serving
from expedited.inventory import NotFoundError
from expedited.sighting import Container, Sighting, Source, State
from expedited.stop import Stop
from expedited.teardown.policy import Policy
from expedited.teardown.report import Fate, Memory, Outcome, ProcessReport, Report, Step

STATUS = Status(
    version="1.2.3",
    striker="ok",
    nri="dialling",
    containerd="off",
    containers=2,
    gated=1,
    stops=3,
    processes=(ProcessStatus("agent", 10, 40 << 20, 30 << 20), ProcessStatus("striker", 11, 12 << 20, 9 << 20)),
    kernel="reap-kill",
    started_at=1_700_000_000.5,
    gate_events=1000,
    gate_overruns=2,
    gate_restarts=1,
    kubernetes="ok",
    source="fanotify",
    source_lost=6,
)


def _make_stop(number: int = 1, **changes: Any) -> Stop:
    values: dict[str, Any] = {
        "number": number,
        "container_id": f"c{number}",
        "cgroup": f"/kubepods/c{number}",
        "trigger": "gate:kill",
        "mode": "strike",
        "order": "lead",
        "outcome": Outcome.STRUCK,
        "reason": "",
        "started_at": 1_700_000_000.25,
        "before": Memory(8 << 30, 1 << 20, 4096, 0),
        "after": Memory(0, 1 << 20, 0, 0),
        "signalled_seconds": 0.001,
        "answered_seconds": None,
        "memory_back_seconds": 0.25,
        "gone_seconds": 0.0,
        "lead_seconds": -0.5,
        "page_cache_dropped_bytes": 77,
        "process_count": 2,
        "lost_races": 1,
        "processes": (ProcessReport(5, 8 << 30, Fate.REAPED), ProcessReport(6, None, Fate.LOST_RACE)),
        "boosted": ("rt", "quota"),
        "steps": (Step(0.0, "kill seen"), Step(0.001, "2 signalled")),
        **changes,
    }
    return Stop(Report(**values), "", "uid-1", "shop", "web", "nginx")


def _make_container(container_id: str, *, sandbox: bool = False, pid: int = 0) -> Container:
    seen = Sighting(container_id, "k8s.io", "nginx", "uid-1", "shop", "web", "s1", sandbox, pid, State.RUNNING)
    return Container(seen, Policy(), (), {Source.STRIKER: 1.0})


@dataclass
class MemoryBackend:
    """The agent's side of the API, without an agent: knows what the test puts into it."""

    known: list[Container] = field(default_factory=list)
    remembered: list[Stop] = field(default_factory=list)
    struck: list[tuple[Target, dict[str, Any]]] = field(default_factory=list)
    fault: Exception | None = None
    watchers: list[asyncio.Queue[Stop]] = field(default_factory=list)
    watched: threading.Event = field(default_factory=threading.Event)
    unwatched: threading.Event = field(default_factory=threading.Event)
    told: Status = STATUS

    async def strike(self, target: Target, overrides: dict[str, Any]) -> Sequence[Stop]:
        if self.fault:
            raise self.fault
        if target.container_id == "nobody":
            raise NotFoundError("no container's id begins with 'nobody': `expedited top` shows the ids")
        self.struck.append((target, overrides))
        return [_make_stop(7), _make_stop(8)]

    def containers(self) -> Sequence[Container]:
        return self.known

    def stops(self) -> Sequence[Stop]:
        return self.remembered

    async def watch(self, *, replay: bool) -> AsyncGenerator[Stop, None]:
        queue: asyncio.Queue[Stop] = asyncio.Queue()
        self.watchers.append(queue)
        self.watched.set()
        try:
            for stop in self.remembered if replay else ():
                yield stop
            while True:
                yield await queue.get()
        finally:
            self.watchers.remove(queue)
            self.unwatched.set()

    async def status(self) -> Status:
        return self.told


@dataclass
class Agent:
    """The API that runs in a thread, and its backend."""

    backend: MemoryBackend
    path: Path
    loop: asyncio.AbstractEventLoop
    close: Callable[[], None]

    def announce(self, stop: Stop) -> None:
        for queue in list(self.backend.watchers):
            self.loop.call_soon_threadsafe(queue.put_nowait, stop)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    # In /tmp, and open to all: the paths of sockets must be short, and one test comes as another user
    directory = Path(tempfile.mkdtemp(prefix="expedited-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _start_agent(path: Path) -> Agent:
    """Serve in a thread of its own, as the client's calls block; raises what the server raises."""
    backend = MemoryBackend()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    failures: list[BaseException] = []
    ready = threading.Event()

    async def serve() -> None:
        async with serving(backend, str(path)):
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            failures.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    if failures:
        thread.join()
        raise failures[0]

    def close() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        if failures:
            raise failures[0]

    return Agent(backend, path, loop, close)


@pytest.fixture(name="start_agent")
def start_agent_fixture() -> Callable[..., Agent]:
    """``start_agent(path) -> Agent``: whoever starts it closes it."""
    return _start_agent


@pytest.fixture(name="make_stop")
def make_stop_fixture() -> Callable[..., Stop]:
    """``make_stop(number, **changes of the report) -> Stop`` of shop/web/nginx."""
    return _make_stop


@pytest.fixture(name="make_container")
def make_container_fixture() -> Callable[..., Container]:
    """``make_container(id, sandbox=False, pid=0) -> Container`` of the pod shop/web."""
    return _make_container


@pytest.fixture
def agent(run_dir: Path) -> Iterator[Agent]:
    running = _start_agent(run_dir / "expedited.sock")
    yield running
    running.close()


@pytest.fixture
def client(agent: Agent) -> Iterator[ApiClient]:
    with ApiClient(str(agent.path)) as asking:
        yield asking

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from expedited import __version__
from expedited.api.client import ApiClient
from expedited.doctor import Finding, Level, works
from expedited.doctor.ours import look
from expedited.doctor.striker import _at_work
from expedited.settings import AgentSettings
from expedited.striker.status import StrikerStatus


def _findings(settings: AgentSettings, config: Path | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in look(settings, config)}


@contextmanager
def _running(*command: str, under: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*under, sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


_NOTHING_STRUCK = "nothing is gated and nothing is struck"
_FOLLOWS = "strikes only follow the runtime's kill"
_QUEUES = "its reapers queue for a CPU"
_OWN_PAGES = "a strike waits for its own pages"
_COSTS = (_NOTHING_STRUCK, _FOLLOWS, _QUEUES, _OWN_PAGES)


@contextmanager
def _striker(
    settings: AgentSettings, *options: str, under: tuple[str, ...] = ()
) -> Iterator[tuple[dict[str, Finding], int]]:
    """What is found beside a striker at work, and the process id of its gate."""
    usual = (f"--run-dir={settings.run_dir}", f"--state-root={settings.state_roots[0]}", "--hold-executions=off")
    with _running("expedited.striker", *usual, *options, under=under) as striker:
        assert striker.stdout is not None
        pid = json.loads(striker.stdout.readline())["pid"]
        yield _findings(settings), pid


def _named(finding: Finding) -> set[str]:
    return {cost for cost in _COSTS if cost in finding.costs}


def test_nobody_at_work_is_said_with_where_they_were_looked_for(settings: AgentSettings) -> None:
    said = _findings(settings)
    for name, path in (("agent", settings.api_socket), ("striker", settings.striker_socket)):
        assert said[name].level is Level.DEGRADED
        assert said[name].found == f"{path}: not there"
        assert "expedited run" in said[name].remedy
    assert _named(said["striker"]) == {_NOTHING_STRUCK}


def test_a_striker_at_work_tells_how_it_is(settings: AgentSettings, run_dir: Path) -> None:
    (run_dir / "runc" / "ns" / "one").mkdir(parents=True)
    options = ("--run-dir", settings.run_dir, "--state-root", settings.state_roots[0], "--hold-executions", "off")
    with _running("expedited.striker", *options) as striker:
        assert striker.stdout is not None
        ready = json.loads(striker.stdout.readline())
        said = _findings(settings)["striker"]
        assert f"pid {ready['pid']}, by fanotify, 1 gated, kernel {ready['kernel']}" in said.found
        quick = "not real-time" not in said.found and "memory not locked" not in said.found
        assert said.level is (Level.OK if quick else Level.DEGRADED)


def test_a_striker_that_only_observes_costs_what_it_costs_to_follow(settings: AgentSettings) -> None:
    with _striker(settings, "--source=observe") as (said, pid):
        finding = said["striker"]
        assert f"pid {pid}, by proc-connector" in finding.found
    assert finding.level is Level.DEGRADED
    lacks = {_FOLLOWS}
    lacks |= {_QUEUES} if "not real-time" in finding.found else set()
    lacks |= {_OWN_PAGES} if "memory not locked" in finding.found else set()
    assert _named(finding) == lacks
    assert "source: auto or gate" in finding.remedy
    assert "expedited run" not in finding.remedy


@pytest.mark.parametrize(
    ("under", "found", "cost", "remedy"),
    [
        (("setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"), "not real-time", _QUEUES, "CAP_SYS_NICE"),
        (
            ("prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"),
            "memory not locked",
            _OWN_PAGES,
            "CAP_IPC_LOCK",
        ),
    ],
    ids=["priority", "memory"],
)
def test_what_a_striker_at_work_lacks_is_what_it_costs_and_no_more(
    settings: AgentSettings, under: tuple[str, ...], found: str, cost: str, remedy: str
) -> None:
    with _striker(settings, under=under) as (said, _):
        finding = said["striker"]
    assert finding.level is Level.DEGRADED
    assert found in finding.found
    assert cost in finding.costs
    assert remedy in finding.remedy
    assert not _named(finding) & {_NOTHING_STRUCK, _FOLLOWS}


def test_a_striker_that_lacks_nothing_is_worth_what_none_would_cost() -> None:
    status = StrikerStatus(source="fanotify", realtime=True, memory_locked=True)
    assert _at_work(status).level is Level.OK
    assert _named(_at_work(status)) == {_NOTHING_STRUCK}
    without_all = _at_work(StrikerStatus(source="proc-connector"))
    assert _named(without_all) == {_FOLLOWS, _QUEUES, _OWN_PAGES}
    for part in ("source: auto", "CAP_SYS_NICE", "CAP_IPC_LOCK"):
        assert part in without_all.remedy


_BY_NO_RUNTIME = "a SIGKILL that no runtime command sends"
_FIRST_SECOND = "an OOM kill in a container's first second"
_OVER_AT_ONCE = "over before it could be followed"


def test_the_gate_in_use_is_named_with_what_it_can_not_see(settings: AgentSettings) -> None:
    with _striker(settings, "--source=gate") as (said, _):
        source = said["source"]
    assert source.level is Level.OK
    assert source.found.startswith("fanotify, the kill gate; it can't see ")
    assert "what was over at once" not in source.found
    assert (_BY_NO_RUNTIME in source.costs, _FIRST_SECOND in source.costs, _OVER_AT_ONCE in source.costs) == (1, 1, 0)
    assert "expedited kill" in source.remedy


def test_the_observer_in_use_is_named_with_what_it_can_not_see_as_well(settings: AgentSettings) -> None:
    with _striker(settings, "--source=observe") as (said, _):
        source = said["source"]
    assert source.level is Level.DEGRADED
    assert works(said.values())
    assert source.found.startswith("proc-connector, the observer; it can't see what was over at once, ")
    assert (_BY_NO_RUNTIME in source.costs, _FIRST_SECOND in source.costs, _OVER_AT_ONCE in source.costs) == (1, 1, 1)
    assert "source: auto or gate" in source.remedy


def test_with_no_striker_no_source_is_in_use(settings: AgentSettings) -> None:
    source = _findings(replace(settings, source="gate"))["source"]
    assert source.level is Level.UNKNOWN
    assert source.found == "none in use, as no striker answers; configured: gate"
    assert _BY_NO_RUNTIME in source.costs


def test_an_agent_at_work_tells_of_its_striker_and_its_runtime(settings: AgentSettings) -> None:
    wanted = replace(settings, metrics_address="", nri_socket="", containerd_socket="", log_format="json")
    with _running("expedited.agent", wanted.to_json()) as agent:
        while (said := _findings(wanted))["agent"].level is not Level.OK:
            assert agent.poll() is None, agent.communicate()
    assert said["agent"].found.startswith(f"{__version__} at {wanted.api_socket}; striker ok")
    assert "no control API" in said["agent"].costs
    assert said["striker"].found.startswith("pid ")


def test_an_agent_without_a_striker_costs_the_strikes_and_not_the_control_api(settings: AgentSettings) -> None:
    wanted = replace(settings, metrics_address="", nri_socket="", containerd_socket="", log_format="json")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
        mute.bind(wanted.striker_socket)
        mute.listen()
        with _running("expedited.agent", wanted.to_json()) as agent:
            while "striker starting" not in (said := _findings(wanted))["agent"].found:
                assert agent.poll() is None, agent.communicate()
    assert said["agent"].level is Level.DEGRADED
    assert "kills go the runtime's way" in said["agent"].costs
    assert "no control API" not in said["agent"].costs
    assert "again and again" in said["agent"].remedy


def test_an_agent_whose_striker_was_ended_for_good_is_to_be_started_anew(settings: AgentSettings) -> None:
    wanted = replace(settings, metrics_address="", nri_socket="", containerd_socket="", log_format="json")
    with _running("expedited.agent", wanted.to_json()) as agent:
        while _findings(wanted)["agent"].level is not Level.OK:
            assert agent.poll() is None, agent.communicate()
        with ApiClient(wanted.api_socket) as client:
            client.close_gate()
        said = _findings(wanted)
    assert "striker closed" in said["agent"].found
    assert said["agent"].level is Level.DEGRADED
    assert "expedited close has ended it" in said["agent"].remedy
    assert _named(said["striker"]) == {_NOTHING_STRUCK}


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [("agent", "expedited.sock", socket.SOCK_STREAM), ("striker", "striker.sock", socket.SOCK_SEQPACKET)],
)
def test_whoever_listens_and_says_nothing_is_not_waited_for(
    settings: AgentSettings, run_dir: Path, name: str, file: str, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_UNIX, kind) as mute:
        mute.bind(str(run_dir / file))
        mute.listen()
        said = _findings(settings)[name]
    assert said.level is Level.DEGRADED
    assert "not answer" in said.found
    assert "log" in said.remedy
    assert _NOTHING_STRUCK not in said.costs  # nobody knows


def test_a_striker_that_talks_nonsense_is_no_striker(settings: AgentSettings, run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(settings.striker_socket)
        listener.listen()
        pid = os.fork()
        if pid == 0:
            # The first is the knock; the second asks
            listener.accept()[0].close()
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.send(b"not JSON")
            os._exit(0)
        said = _findings(settings)["striker"]
        os.waitpid(pid, 0)
    assert said.level is Level.DEGRADED
    assert _NOTHING_STRUCK not in said.costs  # nobody knows


def test_the_configuration_that_is_read_is_named(
    settings: AgentSettings, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run_dir / "config.yaml"
    file.write_text("")
    assert _findings(settings, file)["configuration"].found == str(file)
    monkeypatch.setenv("EXPEDITED_CONFIG", str(file))
    monkeypatch.setenv("EXPEDITED_LOG_LEVEL", "info")
    monkeypatch.setenv("EXPEDITED_SERVICE_HOST", "10.0.0.1")  # kubelet's, of a service by that name
    assert _findings(settings)["configuration"].found == f"{file}, 1 EXPEDITED_ variables"


def test_the_versions_are_those_that_run(settings: AgentSettings) -> None:
    import google.protobuf
    import grpc

    found = _findings(settings)["versions"].found
    python = ".".join(map(str, sys.version_info[:3]))
    for part in (
        f"expedited {__version__}",
        f"Python {python}",
        f"grpcio {grpc.__version__}",
        f"protobuf {google.protobuf.__version__}",
    ):
        assert part in found

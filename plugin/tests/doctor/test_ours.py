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
from expedited.doctor import Finding, Level
from expedited.doctor.ours import look
from expedited.settings import AgentSettings


def _findings(settings: AgentSettings, config: Path | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in look(settings, config)}


@contextmanager
def _running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def test_nobody_at_work_is_said_with_where_they_were_looked_for(settings: AgentSettings) -> None:
    said = _findings(settings)
    for name, path in (("agent", settings.api_socket), ("striker", settings.striker_socket)):
        assert said[name].ok is Level.DEGRADED
        assert said[name].found == f"{path}: not there"


def test_a_striker_at_work_tells_how_it_is(settings: AgentSettings, run_dir: Path) -> None:
    (run_dir / "runc" / "ns" / "one").mkdir(parents=True)
    options = ("--run-dir", settings.run_dir, "--state-root", settings.state_roots[0], "--hold-executions", "off")
    with _running("expedited.striker", *options) as striker:
        assert striker.stdout is not None
        ready = json.loads(striker.stdout.readline())
        said = _findings(settings)["striker"]
        assert f"pid {ready['pid']}, by fanotify, 1 gated, kernel {ready['kernel']}" in said.found
        quick = "not real-time" not in said.found and "memory not locked" not in said.found
        assert said.ok is (Level.OK if quick else Level.DEGRADED)


def test_a_striker_that_holds_nobody_is_degraded(settings: AgentSettings) -> None:
    options = ("--run-dir", settings.run_dir, "--state-root", settings.state_roots[0], "--source", "observe")
    with _running("expedited.striker", *options) as striker:
        assert striker.stdout is not None
        ready = json.loads(striker.stdout.readline())
        said = _findings(settings)["striker"]
    assert f"pid {ready['pid']}, by proc-connector" in said.found
    assert said.ok is Level.DEGRADED


def test_an_agent_at_work_tells_of_its_striker_and_its_runtime(settings: AgentSettings) -> None:
    wanted = replace(settings, metrics_address="", nri_socket="", containerd_socket="", log_format="json")
    with _running("expedited.agent", wanted.to_json()) as agent:
        while (said := _findings(wanted))["agent"].ok is not Level.OK:
            assert agent.poll() is None, agent.communicate()
    assert said["agent"].found.startswith(f"{__version__} at {wanted.api_socket}; striker ok")
    assert said["striker"].found.startswith("pid ")


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
    assert said.ok is Level.DEGRADED
    assert "not answer" in said.found


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
    assert said.ok is Level.DEGRADED


def test_the_configuration_that_is_read_is_named(
    settings: AgentSettings, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run_dir / "config.yaml"
    file.write_text("")
    assert _findings(settings, file)["configuration"].found == str(file)
    monkeypatch.setenv("EXPEDITED_CONFIG", str(file))
    monkeypatch.setenv("EXPEDITED_LOG_LEVEL", "info")
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

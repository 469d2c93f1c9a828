from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from expedited.demo.daemon import PrivateContainerd
from expedited.doctor import Finding, Level
from expedited.doctor.nri import look as look_at_nri
from expedited.doctor.runtime import look
from expedited.pb.containerd.services.version.v1 import version_pb2, version_pb2_grpc
from expedited.settings import AgentSettings


def _findings(settings: AgentSettings) -> dict[str, Finding]:
    return {finding.name: finding for finding in look(settings)}


def test_a_real_containerd_is_found_with_its_nri_and_its_containers(
    containerd: PrivateContainerd, make_container: Callable, settings: AgentSettings
) -> None:
    make_container("--bytes", "1M")
    said = _findings(
        replace(
            settings,
            containerd_socket=str(containerd.socket),
            nri_socket=str(containerd.nri_socket),
            state_roots=(containerd.state_root, "/nowhere/*"),
        )
    )
    version = containerd.ctr("version").stdout.split("Server:")[1].split("Version:")[1].split()[0]
    assert said["containerd"].found == f"{version} at {containerd.socket}"
    assert said["containerd"].level is Level.OK
    assert said["NRI"].found == f"the runtime listens at {containerd.nri_socket}"
    assert said["NRI"].level is Level.OK
    # The container and its sandbox, at least: the daemon is shared with other tests
    root, count = said["state directories"].found.split(": ")
    assert root == containerd.state_root
    assert int(count.split()[0]) >= 2
    assert said["state directories"].level is Level.OK


def test_looking_for_nri_leaves_no_trace_in_the_runtimes_log(
    containerd: PrivateContainerd, settings: AgentSettings
) -> None:
    before = len(containerd.log_path.read_bytes())
    look_at_nri(str(containerd.nri_socket), containerd.pid, containerd.binaries.version)
    # Of another test's pod it may have something to say meanwhile
    said = containerd.log_path.read_bytes()[before:].decode().splitlines()
    assert not [line for line in said if re.search("nri|plugin", line, re.IGNORECASE)]


def test_nri_is_seen_from_a_network_of_ones_own(containerd: PrivateContainerd) -> None:
    """As in the agent's pod, which has the node's processes and not its network."""
    code = "import sys; from expedited.doctor.nri import look\nprint(look(sys.argv[1], int(sys.argv[2]), None).found)"
    command = ["unshare", "--net", sys.executable, "-c", code, str(containerd.nri_socket), str(containerd.pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout == f"the runtime listens at {containerd.nri_socket}\n"


def test_where_nri_is_elsewhere_the_daemons_own_configuration_is_read(
    containerd: PrivateContainerd, settings: AgentSettings
) -> None:
    said = _findings(replace(settings, containerd_socket=str(containerd.socket)))["NRI"]
    assert said.level is Level.DEGRADED
    assert said.found == f"{settings.nri_socket}: not there; {containerd.root}/config.toml has disable = false"


def test_nothing_there_is_degraded_and_names_the_places(settings: AgentSettings) -> None:
    said = _findings(settings)
    for name, path in (
        ("containerd", settings.containerd_socket),
        ("NRI", settings.nri_socket),
        ("state directories", settings.state_roots[0]),
    ):
        assert said[name].level is Level.DEGRADED
        assert path in said[name].found


def test_what_is_configured_off_is_not_missed(settings: AgentSettings) -> None:
    said = _findings(replace(settings, nri_socket="", containerd_socket=""))
    assert said["NRI"].level is Level.OK
    assert said["containerd"].level is Level.OK


def test_a_containerd_that_does_not_answer_is_not_waited_for(settings: AgentSettings) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(settings.containerd_socket)
        mute.listen()
        said = _findings(settings)["containerd"]
    assert said.level is Level.DEGRADED
    assert said.found.count(settings.containerd_socket) >= 1
    assert "does not answer" in said.found or "can't be reached" in said.found


class _VersionOf(version_pb2_grpc.VersionServicer):
    """Stands for releases that this machine can't run."""

    def __init__(self, version: str) -> None:
        self._version = version

    def Version(self, request: object, context: object) -> version_pb2.VersionResponse:  # noqa: N802 - gRPC's name
        return version_pb2.VersionResponse(version=self._version)


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("1.6.20~ds1", Level.DEGRADED),
        ("v1.7.0-beta.1", Level.OK),
        ("1.7.24~ds1", Level.OK),
        ("v2.10.0", Level.OK),
        ("unknown", Level.DEGRADED),
    ],
)
def test_a_containerd_before_1_7_is_too_old_for_nri(settings: AgentSettings, version: str, level: Level) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    version_pb2_grpc.add_VersionServicer_to_server(_VersionOf(version), server)
    server.add_insecure_port(f"unix:{settings.containerd_socket}")
    server.start()
    try:
        said = _findings(settings)["containerd"]
    finally:
        server.stop(None).wait()
    assert said.level is level
    assert said.found.startswith(f"{version} at {settings.containerd_socket}")


def test_programs_are_found_by_the_path_and_asked_for_their_version(
    settings: AgentSettings, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in (("runc", "echo runc version 1.3.6+x1"), ("crun", "sleep 60")):
        (run_dir / name).write_text(f"#!/bin/sh\nexec {script}\n")
        (run_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{run_dir}:/usr/bin:/bin")
    said = _findings(settings)["programs"]
    assert f"runc 1.3.6+x1 ({run_dir}/runc)" in said.found
    assert f"crun of unknown version ({run_dir}/crun)" in said.found
    assert said.level is Level.OK


# -- NRI and containerd's configuration --------------------------------------------------------------------------------


@contextmanager
def _daemon_with(config: Path) -> Iterator[int]:
    """A process that has been started as containerd would be."""
    waits = config.with_name("containerd.py")
    waits.write_text("import sys; print(flush=True); sys.stdin.read()")
    command = [sys.executable, waits, "--log-level", "info", "--config", config]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # only now is its command line sure to be in /proc
        yield process.pid


_NRI = "[plugins.'io.containerd.nri.v1.nri']\n"


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        (_NRI + "disable = true", (2, 1), "has disable = true"),
        ("version = 2", (1, 7), "does not say, and this containerd has it off by default"),
        ("version = 3", (2, 0), "does not say, and this containerd has it on by default"),
        ("version = 2", None, "does not say, and containerd before 2.0 has it off by default"),
        ("disabled_plugins = ['io.containerd.nri.v1.nri']", (2, 1), "among disabled_plugins"),
        ("version = ", (2, 1), "is not as expected"),
        ("plugins = 7", (2, 1), "is not as expected"),
        ("imports = ['drop-in/*.toml']\n" + _NRI + "disable = true", (2, 1), "has disable = false"),
        (None, (1, 7), "there is no"),
    ],
)
def test_why_nri_is_not_there_is_read_from_the_configuration(
    run_dir: Path, text: str | None, version: tuple[int, int] | None, expected: str
) -> None:
    config = run_dir / "config.toml"
    if text is not None:
        config.write_text(text)
    (run_dir / "drop-in").mkdir()
    (run_dir / "drop-in" / "10-nri.toml").write_text(_NRI + "disable = false")
    with _daemon_with(config) as pid:
        said = look_at_nri(f"{run_dir}/nri.sock", pid, version)
    assert said.level is Level.DEGRADED
    assert expected in said.found
    assert str(config) in said.found


def test_a_socket_that_nobody_listens_at_is_told_from_one_that_can_not_be_seen(run_dir: Path) -> None:
    path = str(run_dir / "nri.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        assert look_at_nri(path, 0, None).level is Level.OK
    assert look_at_nri(path, 0, None).level is Level.UNKNOWN
    with _daemon_with(run_dir / "config.toml") as pid:
        assert "nobody is seen to listen" in look_at_nri(path, pid, (2, 1)).found

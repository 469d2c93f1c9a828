"""The command line as a terminal or a pipe has it: real processes, an agent with no runtime, a cgroup to strike."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from expedited.api.client import ApiClient
from expedited.pb.v1 import expedited_pb2 as pb
from support.agent import AgentProcess

Agent = Any
StartAgent = Callable[..., Agent]
MakeCgroup = Callable[[], Any]
NO_RUNTIME = "--state-root=/nobody/is/here/*"
PROGRAM = Path(sys.executable).with_name("expedited")


@contextmanager
def sleeper_in(cgroup: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        cgroup.add(process.pid)
        yield process
    finally:
        process.kill()
        process.wait()


def begin(agent: Agent, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [agent.program, *arguments, f"--run-dir={agent.run_dir}"]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **(streams | options))


def expedited(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=60)


def strike_one(agent: Agent, cgroup: Any) -> None:
    """One more stop, of a process in that cgroup."""
    with sleeper_in(cgroup) as sleeper, agent.ask() as asked:
        asked.strike(pb.StrikeRequest(cgroup=cgroup.path))
        assert sleeper.wait(20) == -signal.SIGKILL


@pytest.fixture(scope="module")
def agent(start_lasting_agent: StartAgent) -> Agent:
    """One for all tests that only ask."""
    return start_lasting_agent(NO_RUNTIME)


@pytest.fixture
def agent_with_stops(agent: Agent, make_cgroup: MakeCgroup) -> Agent:
    """It has struck two more cgroups."""
    for _ in range(2):
        strike_one(agent, make_cgroup())
    return agent


def newest(agent: Agent) -> int:
    with agent.ask() as asked:
        return int(asked.stops(1)[0].number)


@pytest.mark.parametrize("crashed", [False, True], ids=["never-there", "crashed"])
def test_kill_of_a_cgroup_needs_no_agent(
    run_dir: Path, start_agent: StartAgent, make_cgroup: MakeCgroup, crashed: bool
) -> None:
    if crashed:
        agent = start_agent(NO_RUNTIME)
        agent.process.kill()
        agent.process.wait()
        agent.process.returncode = 0
        assert agent.socket.exists()
    cgroup = make_cgroup()
    child = cgroup.child("below")
    with sleeper_in(cgroup) as one, sleeper_in(child) as two:
        answer = expedited("kill", "--cgroup", str(cgroup.memory_dir), "--json", f"--run-dir={run_dir}")
        assert answer.returncode == 0, answer.stderr
        assert answer.stderr == "no agent runs: striking from here\n"
        (stop,) = json.loads(answer.stdout)["stops"]
        assert (stop["outcome"], stop["process_count"], stop["cgroup"]) == ("struck", 2, cgroup.path)
        assert {one.wait(20), two.wait(20)} == {-signal.SIGKILL}
    if crashed:
        start_agent(NO_RUNTIME)  # ends the striker that the crashed one has left, when it is ended itself


@pytest.mark.parametrize("arguments", ["stops --json", "status", "top --once", "top --json"])
def test_who_reads_no_more_is_no_error(agent_with_stops: Agent, arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = begin(agent_with_stops, *arguments.split(), stdout=writer)
    os.close(writer)
    _, stderr = command.communicate(timeout=60)
    assert (stderr, command.returncode) == ("", 0)


@pytest.mark.parametrize("arguments", ["doctor", "doctor --json", "--version", "kill --help"])
def test_the_exit_code_is_the_same_where_nobody_reads(arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [PROGRAM, *arguments.split()]
    try:
        answer = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert answer.stderr == ""
    assert answer.returncode == subprocess.run(command, stdout=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("arguments", ["doctor", "doctor --json", "--version", "kill --help"])
def test_output_that_can_not_be_written_is_one_line(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run([PROGRAM, *arguments.split()], stdout=full, stderr=subprocess.PIPE, text=True)
    assert answer.stderr == "expedited: output: No space left on device\n"
    assert answer.returncode == 1


def test_following_begins_with_as_many_as_are_wanted_and_ends_with_its_reader(
    agent_with_stops: Agent, make_cgroup: MakeCgroup
) -> None:
    before = newest(agent_with_stops)
    with begin(agent_with_stops, "stops", "--follow", "--json", "--limit=2") as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        for number in (before - 1, before):
            assert json.loads(follower.stdout.readline())["number"] == number
        strike_one(agent_with_stops, make_cgroup())
        assert json.loads(follower.stdout.readline())["number"] == before + 1
        follower.stdout.close()
        strike_one(agent_with_stops, make_cgroup())
        follower.wait(60)
        assert follower.stderr.read() == ""


def test_who_follows_has_headings_and_columns_that_line_up(agent_with_stops: Agent, make_cgroup: MakeCgroup) -> None:
    with begin(agent_with_stops, "stops", "--follow", "--limit=1") as follower:
        assert follower.stdout is not None
        lines = [follower.stdout.readline() for _ in range(2)]
        scratch = make_cgroup()
        strike_one(agent_with_stops, scratch)
        lines.append(follower.stdout.readline())
        follower.send_signal(signal.SIGINT)
        assert follower.wait(60) == 0
    heads, *rows = (line.rstrip("\n") for line in lines)
    assert heads.split() == ["time", "container", "outcome", "back", "after", "gone", "order", "trigger"]
    for row in rows:
        assert row.index("struck") == heads.index("outcome")
        assert row.index("lead") == heads.index("order")
        assert row.rindex(row.split()[-1]) == heads.index("trigger")
    assert rows[-1].split()[1] == scratch.path  # whole: the beginning of a cgroup's path says little


def _has_become_the_agent(agent: Agent) -> bool:
    return b"expedited.agent" in Path(f"/proc/{agent.process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (_has_become_the_agent, signal.SIGINT),
        (_has_become_the_agent, signal.SIGTERM),
        (lambda agent: agent.socket.exists(), signal.SIGINT),
        (lambda agent: (agent.run_dir / "striker.sock").exists(), signal.SIGTERM),
        (lambda agent: agent.told("the kill gate is up"), signal.SIGINT),
    ],
    ids=["hardly-begun", "hardly-begun-term", "api", "striker-term", "ready"],
)
def test_a_signal_at_any_moment_ends_an_agent_in_order(
    start_agent: StartAgent, moment: Callable[[Agent], object], number: signal.Signals
) -> None:
    agent = start_agent(NO_RUNTIME, ready=False)
    agent.wait(lambda: moment(agent), "it did not come so far")
    agent.process.send_signal(number)
    assert agent.process.wait(60) == 0
    assert "Traceback" not in agent.log_path.read_text()
    assert not list(agent.run_dir.glob("*.sock"))


@pytest.mark.parametrize(
    ("flags", "as_json"), [((), True), (("--log-format=console",), False)], ids=["auto", "console"]
)
def test_what_run_says_before_it_is_the_agent_is_in_the_logs_form(
    run_dir: Path, flags: tuple[str, ...], as_json: bool
) -> None:
    kept_out = ("unshare", "--cgroup", "setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
    off = ("--nri-socket=", "--containerd-socket=", "--metrics-address=", "--kubernetes=off", NO_RUNTIME)
    command = [*kept_out, PROGRAM, "run", f"--run-dir={run_dir}", *off, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            first = process.stderr.readline()
            assert any("the agent runs" in line for line in process.stderr)
            process.terminate()
            process.stderr.read()
            assert process.wait(60) == 0
        finally:
            process.kill()
    if as_json:
        said = json.loads(first)
        assert (said["level"], said["agent"]) == ("warning", process.pid)
        first = said["event"]
    else:
        assert f" [warning  ] agent[{process.pid}]: cgroups" in first
    assert "cgroups are seen from a namespace of our own (" in first


@contextmanager
def in_a_terminal(agent: Agent, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command in a terminal of its own, 24 lines of 100 characters; the terminal's other end."""
    outside, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    process = subprocess.Popen(
        ["setsid", "--ctty", agent.program, *arguments, f"--run-dir={agent.run_dir}"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env={**agent.environment(), "TERM": "xterm"},
    )
    os.close(inside)
    try:
        yield process, outside
    finally:
        process.kill()
        process.wait()
        os.close(outside)


def read_until(descriptor: int, text: str) -> str:
    shown = b""
    while text.encode() not in shown:
        assert select.select([descriptor], [], [], 30)[0], shown.decode(errors="replace")
        try:
            shown += os.read(descriptor, 65536)
        except OSError:  # EIO: the other end is closed
            raise AssertionError(shown.decode(errors="replace")) from None
    return shown.decode()


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_top_in_a_terminal_ends_by_key(agent_with_stops: Agent, key: bytes) -> None:
    with in_a_terminal(agent_with_stops, "top", "--every=0.2") as (top, terminal):
        shown = read_until(terminal, "recent stops")
        assert "striker ok" in shown
        read_until(terminal, "struck")
        os.write(terminal, key)
        while select.select([terminal], [], [], 30)[0]:
            try:
                shown += os.read(terminal, 65536).decode()
            except OSError:
                break
        assert top.wait(30) == 0
    assert "Traceback" not in shown
    assert "\x1b[?1049l" in shown  # the screen
    assert "\x1b[?25h" in shown  # and the cursor are as they were


def test_a_key_typed_ahead_ends_top(agent_with_stops: Agent) -> None:
    with in_a_terminal(agent_with_stops, "top", "--every=0.2") as (top, terminal):
        os.write(terminal, b"q")  # while Python still starts
        read_until(terminal, "\x1b[?1049l")
        assert top.wait(30) == 0


def test_follow_in_a_terminal_ends_by_ctrl_c(agent_with_stops: Agent) -> None:
    with in_a_terminal(agent_with_stops, "stops", "--follow") as (follow, terminal):
        read_until(terminal, "struck")
        os.write(terminal, b"\x03")
        assert follow.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_top_that_is_ended_leaves_the_terminal_as_it_was(agent_with_stops: Agent, number: signal.Signals) -> None:
    with in_a_terminal(agent_with_stops, "top", "--every=0.2") as (top, terminal):
        before = termios.tcgetattr(terminal)
        shown = read_until(terminal, "recent stops")
        assert termios.tcgetattr(terminal)[3] != before[3]
        top.send_signal(number)
        while select.select([terminal], [], [], 30)[0]:
            try:
                shown += os.read(terminal, 65536).decode()
            except OSError:
                break
        assert top.wait(30) == 128 + number
    assert "\x1b[?1049l" in shown
    assert "\x1b[?25h" in shown


def test_a_log_that_nobody_reads_any_more_is_not_the_end_of_the_agent(run_dir: Path, make_cgroup: MakeCgroup) -> None:
    off = ("--nri-socket=", "--containerd-socket=", "--metrics-address=", "--kubernetes=off", NO_RUNTIME)
    command = [AgentProcess.program, "run", f"--run-dir={run_dir}", "--log-level=debug", *off]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=AgentProcess.environment()) as process:
        assert process.stderr is not None
        while b"the kill gate is up" not in process.stderr.readline():
            assert process.poll() is None
        process.stderr.close()
        with ApiClient(f"{run_dir}/expedited.sock") as asked:
            for _ in range(2):
                scratch = make_cgroup()
                with sleeper_in(scratch) as sleeper:
                    (stop,) = asked.strike(pb.StrikeRequest(cgroup=scratch.path))
                    assert sleeper.wait(20) == -signal.SIGKILL
                assert stop.outcome == "struck"
            assert asked.status().striker == "ok"
        process.terminate()
        assert process.wait(30) == 0


def test_stops_are_asked_for_by_a_cgroups_path_too(agent_with_stops: Agent) -> None:
    (newest,) = agent_with_stops.json("stops", "--limit=1")
    assert newest["cgroup"]
    assert newest in agent_with_stops.json("stops", newest["cgroup"], "--limit=0")
    assert agent_with_stops.cli("stops", "/no/such").stdout == "no stop of '/no/such' is remembered\n"


def test_a_boost_is_said_in_any_of_its_words(agent_with_stops: Agent, make_cgroup: MakeCgroup) -> None:
    scratch = make_cgroup()
    with sleeper_in(scratch) as sleeper:
        assert agent_with_stops.cli("kill", "--cgroup", scratch.path, "--boost", "true").returncode == 0
        assert sleeper.wait(20) == -signal.SIGKILL

"""Whatever is wrong with what was typed: one clear line, exit code 1 or 2, and nothing was struck."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from expedited.cli import main
from expedited.settings import AgentSettings

Agent = Any
USAGE, FAILED = 2, 1
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


Expedited = Callable[..., Answer]


@pytest.fixture
def expedited(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """``expedited(*arguments) -> Answer``: the program's own ``main``, in this process, as each start takes a second."""
    for name in [name for name in os.environ if name.startswith("EXPEDITED_")]:
        monkeypatch.delenv(name)

    def become_agent(*arguments: object) -> None:
        raise AssertionError(f"this would have started an agent: {arguments}")

    monkeypatch.setattr(os, "execve", become_agent)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["expedited", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return Answer(int(ended.value.code or 0), said.out, said.err)

    return call


def one_line(answer: Any, code: int, words: str) -> None:
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("expedited: ")
    assert words in lines[0]


@pytest.fixture
def sleeper(make_cgroup: Callable[[], Any]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A process in a cgroup of its own, which must survive."""
    scratch = make_cgroup()
    process = subprocess.Popen(["sleep", "1000"])
    scratch.add(process.pid)
    yield scratch.path, process
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert alive, "it was struck"


def own_cgroup() -> str:
    """Ours in the memory hierarchy, or in the only one there is."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next((line for line in lines if "memory" in line.split(":")[1]), lines[-1]).split(":", 2)[2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], USAGE, "kill what?"),
        (["c1", "--pod", "a/b"], USAGE, "kill what?"),
        (["--cgroup", "/"], USAGE, "the root of the hierarchy"),
        (["--cgroup", "/../"], USAGE, "outside the cgroup hierarchy"),
        (["--cgroup", "relative"], USAGE, "outside the cgroup hierarchy"),
        (["--cgroup", "/tmp"], USAGE, "not in a cgroup file system"),
        (["--cgroup", "/nobody/is/here"], FAILED, "there is none"),
        (["--cgroup", "SLEEPER", "--boost", "maybe"], USAGE, "--boost takes on or off"),
        (["--cgroup", "SLEEPER", "--page-cache", "dorp"], USAGE, "--page-cache takes"),
        (["--cgroup", "SLEEPER", "--deadline", "-1"], USAGE, "--deadline takes"),
        (["--cgroup", "SLEEPER", "--deadline", "2h"], USAGE, "up to an hour"),
        (["--cgroup", "SLEEPER", "--deadline", ""], USAGE, "--deadline takes"),
        (["--cgroup", "SLEEPER", "--boost", ""], USAGE, "--boost takes"),
        (["c1", "--cgroup", ""], USAGE, "kill what?"),
        (["--pod", ""], USAGE, "kill what?"),
        ([" "], USAGE, "kill what?"),
        (["c" * 5000], USAGE, "nothing is called cccc"),
        (["\udcff"], USAGE, "it is not UTF-8"),
        (["--cgroup", "/\udcff"], USAGE, "it is not UTF-8"),
        (["c1"], FAILED, "no agent at"),
        (["--pod", "a/b"], FAILED, "no agent at"),
    ],
)
def test_kill_without_an_agent(
    expedited: Expedited, run_dir: Path, sleeper: tuple[str, Any], arguments: list[str], code: int, words: str
) -> None:
    said = [sleeper[0] if argument == "SLEEPER" else argument for argument in arguments]
    one_line(expedited("kill", *said, "--run-dir", run_dir), code, words)


def test_kill_of_our_own_cgroup(expedited: Expedited, run_dir: Path) -> None:
    one_line(
        expedited("kill", "--cgroup", own_cgroup(), "--run-dir", run_dir),
        USAGE,
        "root of the hierarchy" if own_cgroup() == "/" else "expedited itself runs in it",
    )


def test_kill_with_an_agent(expedited: Expedited, start_agent: Callable[..., Agent], sleeper: tuple[str, Any]) -> None:
    agent = start_agent("--state-root=/nobody/is/here/*")
    for arguments, code, words in (
        (["nobody"], USAGE, "no container's id begins with 'nobody'"),
        (["--pod", "a/b"], USAGE, "no pod 'a/b' on this node"),
        (["--cgroup", "/"], USAGE, "the root of the hierarchy"),
        (["--cgroup", "/../"], USAGE, "outside the cgroup hierarchy"),
        (["--cgroup", "/tmp"], USAGE, "not in a cgroup file system"),
        (["--cgroup", "/nobody/is/here"], FAILED, "there is none"),
        (["--cgroup", own_cgroup()], USAGE, "nothing was done"),
        (["--cgroup", sleeper[0], "--deadline", "2h"], USAGE, "up to an hour"),
        (["--cgroup", sleeper[0], "--page-cache", "dorp"], USAGE, "did you mean drop?"),
        (["--cgroup", "/a\nb"], FAILED, "cgroup /a\\nb: there is none"),
    ):
        one_line(expedited("kill", *arguments, "--run-dir", agent.run_dir), code, words)
    with agent.ask() as asked:
        assert asked.stops() == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode", "strik"], "did you mean strike?"),
        (["--budget", "5s"], "at most 1 s"),
        (["--budget", "5"], "expedited: --budget takes"),
        (["--min-size", "much"], "expedited: --min-size takes a size"),
        (["--nri-socket", "relative"], "expedited: --nri-socket takes an absolute path"),
        (["--containerd-socket", "relative"], "expedited: --containerd-socket takes an absolute path"),
        (["--metrics-address", "localhost"], "expedited: --metrics-address takes HOST:PORT"),
        (["--state-root", "here"], "expedited: --state-root takes a list of absolute paths"),
        (["--event-min-size", "x"], "expedited: --event-min-size takes"),
        (["--log-level", "loud"], "expedited: --log-level takes debug"),
        (["--log-format", "jsn"], "did you mean json?"),
        (["--source", "gat"], "did you mean gate?"),
        (["--config", "/nobody/is/here.yaml"], "can't be read: No such file"),
    ],
)
def test_run_with_a_wrong_flag(expedited: Expedited, run_dir: Path, flags: list[str], words: str) -> None:
    one_line(expedited("run", "--run-dir", run_dir, *flags), USAGE, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mode: strike", "there is no key mode"),
        ("policy: {mod: strike}", "did you mean mode?"),
        ("state-root: /run/runc", "did you mean state-roots?"),
        ("keep-striker: ture", "did you mean true?"),
        ("namespaces: {web: {mode: attack}}", "takes strike, observe, compare or off, not 'attack'"),
        ("policy: [", "line 1"),
        ("- a", "must hold keys and values"),
        ("run-dir: /a\nrun-dir: /b", "the key run-dir is there twice"),
    ],
)
def test_run_with_a_wrong_file(expedited: Expedited, run_dir: Path, text: str, words: str) -> None:
    file = run_dir / "config.yaml"
    file.write_text(text)
    one_line(expedited("run", "--run-dir", run_dir, "--config", file), USAGE, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--frobnicate"], "--frobnicate; see `expedited run --help`"),
        (["run", "--mode"], "'--mode' requires an argument"),
        (["stops", "-n", "x"], "Invalid value for '--limit' / '-n'"),
        (["top", "--every", "0"], "Invalid value for '--every'"),
        (["kill", "a", "b"], "extra argument"),
        (["frob"], "No such command 'frob'; see `expedited --help`"),
    ],
)
def test_what_no_command_takes(expedited: Expedited, arguments: list[str], words: str) -> None:
    one_line(expedited(*arguments), USAGE, words)


@pytest.mark.parametrize("command", ["status", "stops", "top", "kill c1"])
def test_a_run_dir_that_is_too_long_is_one_line(expedited: Expedited, run_dir: Path, command: str) -> None:
    answer = expedited(*command.split(), "--run-dir", run_dir / ("x" * 120))
    one_line(answer, USAGE, "at most 107 bytes")


@pytest.mark.parametrize("command", ["status", "stops", "top", "stops --follow"])
def test_asking_where_no_agent_is(expedited: Expedited, run_dir: Path, command: str) -> None:
    one_line(expedited(*command.split(), "--run-dir", run_dir), FAILED, "no agent at")


# -- an agent that can't begin -----------------------------------------------------------------------------------------


def run_agent(
    run_dir: Path, metrics_address: str = "", *, source: str = "auto", prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The agent as `expedited run` becomes it, without the second that the command line takes."""
    settings = AgentSettings(
        run_dir=str(run_dir), nri_socket="", containerd_socket="", metrics_address=metrics_address, source=source
    )
    command = [*prefix, sys.executable, "-m", "expedited.agent", settings.to_json()]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60)


def last_line(answer: Any, code: int, words: str) -> None:
    """What this machine lacks is said before."""
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("expedited: ")
    assert words in answer.stderr.splitlines()[-1]


def test_a_run_dir_that_is_none(run_dir: Path) -> None:
    (run_dir / "file").write_text("")
    last_line(run_agent(run_dir / "file"), FAILED, "Not a directory")
    last_line(run_agent(run_dir / ("x" * 120)), USAGE, "at most 107 bytes")


def test_a_metrics_address_that_is_taken(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        last_line(run_agent(run_dir, address), FAILED, address)


def test_without_capabilities_it_says_what_is_missing_and_ends(run_dir: Path) -> None:
    # As root by name only; user nobody could not even enter a directory that this interpreter may be in
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--securebits=+noroot")
    answer = run_agent(run_dir, source="gate", prefix=without)
    assert answer.returncode == FAILED, answer.stderr
    assert "Traceback" not in answer.stderr
    why = [line for line in answer.stderr.splitlines() if "no kill gate" in line or "the striker can't" in line]
    assert len(why) == 1, answer.stderr
    assert "no kill gate: fanotify permission events: Operation not permitted" in why[0]
    assert json.loads(why[0])["level"] == "error"
    assert not (run_dir / "expedited.sock").exists()


# -- another user ------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """This process has no more rights than user nobody."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)
    os.setegid(0)


@pytest.mark.parametrize("command", ["status", "stops", "top", "kill c1", "kill --cgroup SLEEPER"])
@pytest.mark.parametrize("agent_runs", [False, True])
def test_a_user_who_may_not(
    expedited: Expedited,
    run_dir: Path,
    sleeper: tuple[str, Any],
    command: str,
    agent_runs: bool,
    request: pytest.FixtureRequest,
) -> None:
    with socket.socket(socket.AF_UNIX) as agents:
        if agent_runs:
            agents.bind(str(run_dir / "expedited.sock"))
            agents.listen()
        else:
            run_dir.chmod(0o755)
        request.getfixturevalue("as_nobody")
        answer = expedited(*command.replace("SLEEPER", sleeper[0]).split(), "--run-dir", run_dir)
    one_line(answer, FAILED, "ask as root" if agent_runs or "SLEEPER" in command else "no agent at")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["--version", "doctor --json", "status --run-dir /nowhere"])
def test_a_stream_that_is_closed_is_no_traceback(words: str, redirection: str) -> None:
    """What goes nowhere goes nowhere, and not to the first file that is opened."""
    program = Path(sys.executable).with_name("expedited")
    done = subprocess.run(
        ["sh", "-c", f"{program} {words} {redirection}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "fault of its own" not in done.stderr


def test_what_an_encoding_has_not_is_shown_as_a_question_mark(run_dir: Path) -> None:
    program = Path(sys.executable).with_name("expedited")
    done = subprocess.run(
        [program, "status", f"--run-dir={run_dir}/\u4e2d"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"expedited: no agent at ")
    assert b"/?/expedited.sock" in done.stderr

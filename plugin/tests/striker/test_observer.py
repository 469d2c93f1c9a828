"""The observer: what it sees of real executions, whom it holds (nobody), and what it says when it can't see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from expedited.striker.log import Log
from expedited.striker.observer import Observer
from expedited.striker.proc_connector import ProcConnector
from expedited.striker.roots import Roots
from expedited.teardown.report import Fate, Outcome

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def observing(make_striker: Callable[..., Any]) -> Any:
    return make_striker("--source=observe")


def test_a_kill_is_followed_and_nobody_is_held(
    node: Any, observing: Any, scratch_cgroup: Any, until: Callable[..., None]
) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "32M")
    runtime = node.begin("kill", "c1", "9", slow=True)
    until(lambda: observing.status()["active"] == 1, "the kill was not seen")
    assert observing.reports() == []
    runtime.communicate()

    report = observing.report_of("c1")
    assert (report.outcome, report.trigger, report.order) == (Outcome.STRUCK, "observer:kill", "follow")
    assert (report.signalled_seconds, report.answered_seconds, report.lead_seconds) == (None, None, None)
    (victim,) = report.processes
    assert victim.fate in (Fate.REAPED, Fate.LOST_RACE, Fate.GONE)  # whoever follows may be late
    assert (process.wait(), runtime.returncode) == (-signal.SIGKILL, 0)
    status = observing.status()
    assert status["source"] == "proc-connector"
    kinds = []
    for entry in Path(f"/proc/{status['pid']}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            kinds.append(str(entry.readlink()))
    assert "anon_inode:[fanotify]" not in kinds


@pytest.mark.parametrize("policy", [{"order": "lead"}, {"order": "auto"}])
def test_it_signals_nobody_whatever_the_policy_says(
    node: Any, observing: Any, scratch_cgroup: Any, alive: Any, policy: dict[str, str]
) -> None:
    """A command line is no proof, as it is no proof at the gate; there the state file is opened, too."""
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "2")
    observing.policy(**policy, deadline_seconds=0.5)
    runtime = node.begin("kill", "c1", "9", idle=True, slow=True)  # one that has ended can't be seen
    report = observing.report_of("c1")
    runtime.communicate()
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "the runtime's own SIGKILL did not come")
    assert alive(process.pid)
    assert len(scratch_cgroup.pids()) == 3


def test_a_sigterm_is_announced_and_a_forced_delete_followed(node: Any, observing: Any, scratch_cgroup: Any) -> None:
    node.container("c1", scratch_cgroup, "--bytes", "16M", "--ignore-term")
    runtime = node.begin("kill", "c1", "15", slow=True)  # one that has ended can't be seen
    assert observing.said("stop_began", id="c1")
    runtime.communicate()
    runtime = node.begin("delete", "--force", "c1", slow=True)
    while not observing.status()["active"]:
        assert runtime.poll() is None
    runtime.communicate()
    assert observing.report_of("c1").trigger == "observer:delete"


def test_two_containers_of_one_name_are_told_apart_by_the_runtimes_root(
    node: Any, observing: Any, make_cgroup: Callable[[], Any], alive: Any
) -> None:
    others = {}
    for namespace in ("moby", "k8s.io"):
        others[namespace] = node.container("c1", make_cgroup(), "--bytes", "8M")
        if namespace == "moby":
            node.namespace.joinpath("c1").rename(node.namespace.with_name("moby-c1"))
            node.namespace.with_name("moby").mkdir()
            node.namespace.with_name("moby-c1").rename(node.namespace.with_name("moby") / "c1")
    runtime = node.begin("kill", "c1", "9", slow=True, namespace="moby")
    while not observing.status()["active"]:
        assert runtime.poll() is None
    runtime.communicate()
    report = observing.report_of("c1")
    assert [victim.pid for victim in report.processes] == [others["moby"].pid]
    assert alive(others["k8s.io"].pid)


def test_what_is_no_kill_of_a_known_container_is_nothing(
    node: Any, observing: Any, scratch_cgroup: Any, alive: Any, until: Callable[..., None]
) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    for words in (
        ("kill", "c2", "9"),
        ("kill", "c1", "USR1"),
        ("state", "c1"),
        ("delete", "c1"),
        ("kill", "../c1", "9"),
    ):
        node.begin(*words, idle=True).communicate()
    until(lambda: observing.status()["events"] >= 5, "it has not seen them")
    assert observing.reports() == []
    assert alive(process.pid)


# -- what it can't see -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_loop() -> Iterator[Callable[[Observer], None]]:
    """Have an observer's loop run in a thread until the test is over."""
    running: list[tuple[Observer, threading.Thread]] = []

    def run(observer: Observer) -> None:
        thread = threading.Thread(target=observer.run)
        thread.start()
        running.append((observer, thread))

    yield run
    for observer, thread in running:
        observer.stop()
        thread.join()
        observer.close()


def test_that_events_were_lost_is_said_once_and_the_next_are_seen(
    run_loop: Callable[[Observer], None], until: Callable[..., None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    connector = ProcConnector(receive_buffer_bytes=1)  # the kernel makes it the least that it gives
    roots = Roots(None, [str(tmp_path)], frozenset(), hold_executions=False)
    observer = Observer(connector, roots, Log(as_json=True), on_kill=print, on_deleted=print, beat=lambda: None)
    for _ in range(50):
        subprocess.run(["true"], check=True)
    run_loop(observer)
    until(lambda: observer.counters.lost >= 1, "it did not notice")
    seen = observer.counters.events
    until(lambda: subprocess.run(["true"], check=True) and observer.counters.events > seen, "it sees nothing any more")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["warning"]
    assert "the kernel has dropped some" in lines[0]["event"]


def striker_ends(run_dir: Path, *options: str, under: tuple[str, ...]) -> str:
    """The one line that a striker says before it ends with 1."""
    command = [*under, sys.executable, "-m", "expedited.striker", f"--run-dir={run_dir}", *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout) == (1, "")
    (line,) = answer.stderr.splitlines()
    return line


_NO_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all")


def test_with_neither_gate_nor_observer_it_says_why_and_ends(tmp_path: Path) -> None:
    """In a network namespace with no way to the node's, as in a pod without CAP_SYS_ADMIN."""
    under = ("unshare", "--net", *_NO_ADMIN)
    gate = "no kill gate: fanotify permission events: Operation not permitted"
    refused = "refused; they are told in the first network namespace only (not in a kind node's)"
    both = f"{gate}; and no observer: process events: {refused}; see `expedited doctor`"
    assert striker_ends(tmp_path, under=under).endswith(both)
    assert striker_ends(tmp_path, "--source=gate", under=under).endswith(f"{gate}; see `expedited doctor`")
    assert "not wanted; and no observer" in striker_ends(tmp_path, "--source=observe", under=under)


def test_process_events_are_not_told_in_another_pid_namespace(tmp_path: Path) -> None:
    under = ("unshare", "--pid", "--fork", "--mount-proc")
    assert "told in the first pid and user namespace only" in striker_ends(tmp_path, "--source=observe", under=under)


def test_without_the_gate_it_observes_and_says_so(tmp_path: Path, node: Any) -> None:
    command = [*_NO_ADMIN, sys.executable, "-m", "expedited.striker", f"--run-dir={tmp_path}", "--log-format=json"]
    with subprocess.Popen(
        [*command, f"--state-root={node.state_root}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as one:
        assert one.stdout is not None
        assert json.loads(one.stdout.readline())["ready"]
        one.send_signal(signal.SIGTERM)
        _, said = one.communicate()
    assert one.returncode == 0
    (line,) = [json.loads(line) for line in said.splitlines() if b"source degraded" in line]
    assert line["level"] == "warning"
    assert "no kill gate: fanotify permission events: Operation not permitted" in line["event"]


@pytest.mark.skipif(not os.access("/proc/1/ns/net", os.R_OK), reason="needs CAP_SYS_PTRACE over process 1")
def test_a_pods_network_namespace_is_left_for_the_nodes(tmp_path: Path) -> None:
    program = (
        "import os; from expedited.striker.proc_connector import ProcConnector; ProcConnector();"
        "print(os.readlink('/proc/self/ns/net'))"
    )
    inside = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert inside.stdout.strip() != str(Path("/proc/self/ns/net").readlink())

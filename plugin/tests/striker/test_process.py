"""The striker as a process: its options, its size, what it imports, how it is scheduled."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import expedited
from expedited.striker.heartbeat import Heartbeat
from expedited.teardown.roster import DESCRIPTORS
from support.seccomp import without_call

MIB = 1 << 20


@pytest.mark.parametrize(
    "options",
    [
        ["--no-such"],
        ["extra"],
        ["--budget=0"],
        ["--budget=2"],
        ["--budget=soon"],
        ["--budget=nan"],
        ["--hold-executions=maybe"],
        ["--log-format=xml"],
        ["--source=tracefs"],
        ["--state-root=relative/path"],
        ["--state-root="],
        ["--state-root=/run/*/crun"],
        ["--state-root=/run/10*"],
        ["--policy=" + "[" * 5000],
        ["--run-dir=here"],
        ["--policy={"],
        ["--policy=[]"],
        ["--policy=5"],
        ['--policy={"mode":"maim"}'],
        ['--policy={"no_such":1}'],
        ['--policy={"min_size_bytes":"1M"}'],
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "expedited.striker", f"--run-dir={tmp_path}", *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1, answer.stderr


def test_what_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    file = tmp_path / "striker.sock"
    file.write_text("keep")
    command = [sys.executable, "-m", "expedited.striker", f"--run-dir={tmp_path}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 1
    assert "striker.sock is in the way: it is no socket" in answer.stderr
    assert file.read_text() == "keep"


def test_a_directory_that_cannot_be_made_is_one_line_and_status_1() -> None:
    for place in ("/proc/nowhere", "/tmp/" + "x" * 120):
        command = [sys.executable, "-m", "expedited.striker", f"--run-dir={place}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert answer.returncode == 1
        assert len(answer.stderr.splitlines()) == 1, answer.stderr
        assert "None" not in answer.stderr
        if Path(place).is_dir():
            Path(place).rmdir()


def test_without_the_capability_it_says_so_and_ends(tmp_path: Path) -> None:
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", sys.executable, "-m", "expedited.striker"]
    answer = subprocess.run(
        [*command, f"--run-dir={tmp_path}", "--source=gate"], capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 1
    assert "fanotify" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


def test_a_signal_between_its_socket_and_its_loop_leaves_no_socket(tmp_path: Path, node: Any) -> None:
    command = [sys.executable, "-m", "expedited.striker", f"--run-dir={tmp_path}", f"--state-root={node.state_root}"]
    for _ in range(5):
        striker = subprocess.Popen([*command, "--hold-executions=off"], stdout=subprocess.DEVNULL)
        try:
            while not (tmp_path / "striker.sock").exists():
                assert striker.poll() is None
            striker.terminate()
            assert striker.wait(60) == 0
        finally:
            striker.kill()
            striker.wait()
        assert not list(tmp_path.iterdir())


def test_a_striker_whose_socket_was_removed_ends_in_order_all_the_same(
    node: Any, make_striker: Any, scratch_cgroup: Any
) -> None:
    striker = make_striker()
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    Path(striker.socket).unlink()
    striker.process.terminate()
    assert striker.process.wait(60) == 0
    assert striker.log == ""


def test_a_visitor_for_whom_no_descriptor_is_left_does_not_keep_the_link_busy(make_striker: Any, until: Any) -> None:
    striker = make_striker()
    gate = striker.status()["pid"]
    before = resource.prlimit(gate, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{gate}/fd").iterdir()}
    first_free = next(number for number in itertools.count() if number not in used)
    resource.prlimit(gate, resource.RLIMIT_NOFILE, (first_free, before[1]))

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{gate}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        visitor.connect(striker.socket)
        visitor.send(b'{"do": "status"}')
        started, used_before = time.monotonic(), cpu_seconds()
        time.sleep(1)
        share = (cpu_seconds() - used_before) / (time.monotonic() - started)
        assert striker.link.ask("status")["is"] == "status"  # who is in is served meanwhile
        resource.prlimit(gate, resource.RLIMIT_NOFILE, before)
        visitor.settimeout(30)
        assert b'"status"' in visitor.recv(160_000)
    assert share < 0.3


def test_without_an_inotify_instance_it_says_which_sysctl_and_ends(tmp_path: Path) -> None:
    number = {"x86_64": 294, "aarch64": 26}[platform.machine()]  # inotify_init1
    command = [*without_call(number, errno.EMFILE), sys.executable, "-m", "expedited.striker", f"--run-dir={tmp_path}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "fs.inotify.max_user_instances" in line
    assert not list(tmp_path.iterdir())


def test_without_a_watch_it_says_what_that_costs(tmp_path: Path, make_striker: Any) -> None:
    number = {"x86_64": 254, "aarch64": 27}[platform.machine()]  # inotify_add_watch
    striker = make_striker(under=without_call(number, errno.ENOSPC))
    assert "fs.inotify.max_user_watches" in striker.log


def memory_of(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))


def test_it_is_small(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    for number in range(10):
        node.container(f"c{number}", scratch_cgroup.child(f"c{number}"), "--bytes", "4M", "--children", "3")
    striker.wait_gated(*(f"c{number}" for number in range(10)))
    for number in range(10):
        node.run("kill", f"c{number}", "9")
        striker.report_of(f"c{number}")
    status = striker.status()
    pids = (status["pid"], status["supervisor_pid"])
    # Not Pss: what they share with the tests' own interpreter is theirs on a node
    gate, supervisor = (memory_of(pid, "Rss") for pid in pids)
    print(gate, supervisor)  # pytest -s
    assert gate <= 16 * MIB
    assert supervisor <= 11 * MIB


def test_it_imports_the_standard_library_and_its_own(tmp_path: Path) -> None:
    """Without site-packages, and so without anything that is not Python's own."""
    modules = "striker.__main__", "striker.process", "striker.server", "teardown"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(expedited.__file__).parents[1])!r})\n"
        + "".join(f"import expedited.{module}\n" for module in modules)
        + "heavy = {'asyncio', 'grpc', 'logging', 'typing_extensions', 'unittest', 'http', 'email'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    answer = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


def test_it_is_hard_to_starve_and_hard_to_kill(striker: Any) -> None:
    status = striker.status()
    can_lower = Path(f"/proc/{status['supervisor_pid']}/oom_score_adj").read_text().strip()
    assert Path(f"/proc/{status['pid']}/oom_score_adj").read_text().strip() == can_lower
    assert int(can_lower) <= int(Path("/proc/self/oom_score_adj").read_text())
    assert status["realtime"] is (os.sched_getscheduler(status["pid"]) == os.SCHED_RR)
    of_kernel = dict(line.split(":", 1) for line in Path(f"/proc/{status['pid']}/status").read_text().splitlines())
    assert status["memory_locked"] is (int(of_kernel["VmLck"].split()[0]) > 0)
    # It has threads: its table of descriptors would grow under a strike only after an RCU grace period
    assert int(of_kernel["FDSize"]) >= min(DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_the_supervisor_never_holds_the_group(striker: Any) -> None:
    """A copy of the descriptor would keep a dead gate shut."""
    status = striker.status()

    def kinds(pid: int) -> list[str]:
        found = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(entry.readlink()))
        return found

    assert "anon_inode:[fanotify]" in kinds(status["pid"])
    assert "anon_inode:[fanotify]" not in kinds(status["supervisor_pid"])


def test_a_beat_is_never_seen_half_written() -> None:
    """Or a gate that works would be taken for one that hangs, and killed: a strike in progress with it."""
    heartbeat = Heartbeat()
    heartbeat.beat()
    writer = os.fork()
    if writer == 0:
        while True:
            heartbeat.beat()
    try:
        oldest = max(heartbeat.age_seconds() for _ in range(200_000))
        assert oldest < 60, "the writer may be kept off the CPU, but it has not been since the machine came up"
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_what_is_held_in_advance_leaves_descriptors_for_the_gate(
    node: Any, make_striker: Any, make_cgroup: Any, until: Any
) -> None:
    """With none left for the file that a held runtime is opening, the kernel refuses that runtime."""
    limit = 400
    striker = make_striker(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    processes = [
        node.container(f"c{number}", make_cgroup(), "--bytes", "8K", "--children", "149") for number in range(4)
    ]
    striker.wait_gated("c0", "c1", "c2", "c3")
    for number in range(4):
        node.run("kill", f"c{number}", "15", idle=True)
        striker.said("stop_began", id=f"c{number}")
    gate = striker.status()["pid"]
    held = lambda: len(list(Path(f"/proc/{gate}/fd").iterdir()))  # noqa: E731
    until(lambda: held() > limit // 4, "it holds nobody in advance")
    time.sleep(1)  # it goes on, if it does
    assert held() <= limit // 2 + 32
    for number, process in enumerate(processes):
        node.run("kill", f"c{number}", "9")
        assert striker.report_of(f"c{number}").outcome == "struck"
        assert process.wait(60) == -signal.SIGKILL


def test_a_gate_that_is_still_starting_is_not_taken_for_hung() -> None:
    heartbeat = Heartbeat()
    assert heartbeat.age_seconds() < 0
    heartbeat.beat()
    assert heartbeat.age_seconds() >= 0

"""The runner's promises, kept by a real machine: `make test-vm` runs these first."""

# ruff: noqa: D103 - the names of tests say what they hold
import signal
import subprocess
import time
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "run"
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


def vm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(RUN), *arguments], capture_output=True, text=True, timeout=100)


def processes_of(mark: str) -> list[str]:
    """Command lines on this host with the mark in them, the guest's kernel and its stubs among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if mark.encode() in line:
            found.append(line.decode(errors="replace"))
    return found


def booted(tmp_path: Path, mark: str) -> subprocess.Popen[bytes]:
    """A machine that has begun its command and will not end by itself; the mark is on its kernel's command line."""
    command = [str(RUN), "--share", str(tmp_path), "--append", mark, "--"]
    process = subprocess.Popen([*command, "sh", "-c", "sleep 1000 & touch /share/begun; sleep 1000"])
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.1)
    return process


def test_output_error_and_status_are_the_command_s() -> None:
    done = vm("--", "sh", "-c", "printf 'a\\n\\tb'; echo c >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("a\n\tb", "c\n", 7)


def test_command_is_root_on_cgroup_v2_with_every_controller() -> None:
    done = vm("--", "sh", "-c", "id -u; cat /sys/fs/cgroup/cgroup.subtree_control")
    assert done.stdout == "0\ncpuset cpu io memory pids\n"


def test_only_the_shared_folder_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    elsewhere = Path(__file__).parent / tmp_path.name  # the guest's /tmp is its own anyway, but for a checkout in it
    script = f"echo kept >/share/file && echo lost >{elsewhere} && cat {elsewhere}"
    done = vm("--share", str(tmp_path / "share"), "--", "sh", "-c", script)
    assert done.stdout == "lost\n"
    assert (tmp_path / "share" / "file").read_text() == "kept\n"
    assert not elsewhere.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_runner(tmp_path: Path, number: signal.Signals) -> None:
    mark = f"outlives.{tmp_path.name}"
    process = booted(tmp_path, mark)
    assert processes_of(mark)
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 30  # only what SIGKILL leaves to the kernel may take a moment
    while processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(mark) == []


def test_time_out_ends_it() -> None:
    mark = f"timeout.{time.monotonic_ns()}"
    done = vm("--timeout", "5", "--append", mark, "--", "sleep", "1000")
    assert (done.returncode, done.stderr) == (124, "vm: not done after 5 s, killed\n")
    assert processes_of(mark) == []


def test_the_last_of_two_machines_puts_max_map_count_back(tmp_path: Path) -> None:
    vm("--", "true")  # puts right what a killed runner may have left
    before = MAX_MAP_COUNT.read_text()
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (booted(folder, f"count.{tmp_path.name}") for folder in folders)
    raised = MAX_MAP_COUNT.read_text()
    first.terminate()
    first.wait()
    assert MAX_MAP_COUNT.read_text() == raised
    second.terminate()
    second.wait()
    assert int(raised) >= 1_048_576
    assert MAX_MAP_COUNT.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "/nowhere"], "vm: --kernel /nowhere: neither patched nor stock nor a file\n"),
        (["--share", "/nowhere"], "vm: --share /nowhere: no such folder\n"),
        (["--disk", "big"], "vm: --disk big: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str) -> None:
    done = vm(*arguments, "--", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_distribution_s_package_is_booted_with_its_modules(tmp_path: Path) -> None:
    found = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True)
    name = next(line.split()[1] for line in found.stdout.splitlines() if "Depends: linux-image-" in line)
    subprocess.run(["apt-get", "download", "-qq", name], cwd=tmp_path, check=True)
    (package,) = tmp_path.glob("*.deb")
    done = vm("--kernel", str(package), "--", "uname", "-r")
    assert (done.stdout, done.returncode) == (name.removeprefix("linux-image-") + "\n", 0)


def test_a_package_without_a_kernel_is_told(tmp_path: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", "base-files"], cwd=tmp_path, check=True)
    (package,) = tmp_path.glob("*.deb")
    done = vm("--kernel", str(package), "--", "true")
    assert done.returncode == 125
    assert done.stderr == f"vm: --kernel {package}: there is no kernel in this package\n"

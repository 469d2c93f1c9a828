"""The private containerd: what it runs, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from expedited.demo import leftovers
from expedited.demo.cri import ContainerSpec, CriError, Mount, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE
from expedited.errors import ExpeditedError
from support.ctr import run_by_ctr
from support.waiting import wait_for


def test_a_pod_runs_in_the_cgroup_and_the_state_directory_that_are_said(containerd, make_container):
    hog = make_container("--bytes", "8M", "--children", "2")
    assert (containerd.runc_root / "k8s.io" / hog.id / "state.json").is_file()
    assert hog.cgroup.startswith(containerd.cgroup_root)
    assert f":{hog.cgroup}\n" in Path(f"/proc/{hog.pid}/cgroup").read_text()
    assert len(leftovers.processes_in(hog.cgroup)) == 3


def test_a_container_that_is_killed_exits_137_and_one_that_heeds_sigterm_exits_0(containerd, make_container):
    killed, heeding = make_container(), make_container("--term-delay-ms", "50")
    containerd.cri.stop_container(killed.id)
    containerd.cri.stop_container(heeding.id, grace_seconds=30)
    assert containerd.cri.container(killed.id).exit_code == 137
    assert containerd.cri.container(heeding.id).exit_code == 0


def test_hog_that_ignores_sigterm_lives_until_the_grace_is_over(containerd, make_container):
    hog = make_container("--ignore-term")
    began = time.monotonic()
    containerd.cri.stop_container(hog.id, grace_seconds=1)
    assert time.monotonic() - began >= 1
    assert containerd.cri.container(hog.id).exit_code == 137


def test_hog_as_pid_1_reaps_what_is_left_to_it(containerd, make_container):
    hog = make_container("--children", "2")
    children = leftovers.processes_in(hog.cgroup) - {hog.pid}
    leftovers.kill_all(children)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "they are left")
    assert leftovers.processes_in(hog.cgroup) == {hog.pid}


def test_hog_holds_what_it_was_asked_for(containerd, make_container, tmp_path):
    spec = ContainerSpec(
        HOG_IMAGE,
        ("/hog", "--bytes", "20M", "--threads", "2", "--shm", "5M", "--file", "/data/file", "--map", "10M"),
        mounts=(Mount(tmp_path, "/data"),),
    )
    hog = make_container(spec=spec)
    containerd.cri.wait_for_output(hog.id, "READY")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{hog.pid}/status").read_text().splitlines())
    assert int(status["RssAnon"].split()[0]) >= 20 << 10
    assert int(status["RssShmem"].split()[0]) >= 5 << 10
    assert int(status["RssFile"].split()[0]) >= 10 << 10
    assert int(status["Threads"]) == 3


def test_nri_is_on_at_a_socket_of_its_own(containerd):
    assert containerd.nri_socket.is_socket()
    assert containerd.nri_socket.parent == containerd.root


def test_a_cpu_quota_is_set_on_a_container_that_runs(containerd, make_container):
    hog = make_container()
    containerd.cri.limit_cpu(hog.id, quota_us=5000)
    values = [
        (directory / name).read_text().split()[0]
        for directory in leftovers.cgroup_directories(hog.cgroup)
        for name in ("cpu.cfs_quota_us", "cpu.max")
        if (directory / name).exists()
    ]
    assert values == ["5000"]


def test_a_command_in_a_container_is_run(containerd, make_container):
    done = containerd.cri.exec_sync(make_container().id, ("/hog", "--bytes", "nonsense"))
    assert (done.exit_code, done.stderr) == (2, b"hog: not a number of bytes: nonsense\n")


def test_pods_share_pid_namespaces_as_asked(containerd, make_pod, make_container):
    def namespace(hog):
        return Path(f"/proc/{hog.pid}/ns/pid").readlink()

    alone = make_container()
    on_host = make_container(pod=make_pod(PodSpec(host_pid=True)))
    shared = make_pod(PodSpec(share_pid=True))
    first = make_container(pod=shared, spec=ContainerSpec(HOG_IMAGE, name="first"))
    second = make_container(pod=shared, spec=ContainerSpec(HOG_IMAGE, name="second"))
    assert namespace(on_host) == Path("/proc/self/ns/pid").readlink() != namespace(alone)
    assert namespace(first) == namespace(second) != namespace(alone)


def test_ctr_runs_a_container_below_the_same_roots(containerd):
    run_by_ctr(containerd, "by-ctr", "/hog")
    try:
        assert (containerd.runc_root / "default" / "by-ctr" / "state.json").is_file()
        assert leftovers.processes_in(f"{containerd.cgroup_root}/default/by-ctr")
    finally:
        containerd.ctr("task", "delete", "--force", "by-ctr", namespace="default")
        containerd.ctr("container", "delete", "by-ctr", namespace="default")


def test_containers_outlive_a_restart_of_the_daemon(containerd, make_container):
    hog, before = make_container(), containerd.pid
    containerd.restart()
    assert containerd.pid != before
    assert containerd.cri.container(hog.id).pid == hog.pid
    containerd.kill()
    with pytest.raises(CriError):
        containerd.cri.version()
    containerd.start()
    containerd.cri.stop_container(hog.id)
    assert containerd.cri.container(hog.id).exit_code == 137


def test_a_runtime_error_is_one_line_that_names_the_call(containerd):
    with pytest.raises(CriError, match=r"ContainerStatus failed: .*nobody") as caught:
        containerd.cri.container("nobody")
    assert "\n" not in str(caught.value)


def test_output_that_never_comes_is_an_error_that_says_what_came(containerd, make_pod):
    pod = make_pod()
    container_id = containerd.cri.create_container(pod, ContainerSpec(HOG_IMAGE, ("/hog", "--bytes", "many")))
    containerd.cri.start_container(container_id)
    with pytest.raises(ExpeditedError, match="not a number of bytes: many"):
        containerd.cri.wait_for_output(container_id, "READY")


def test_a_root_too_long_for_sockets_is_refused():
    with pytest.raises(ExpeditedError, match="too long for the sockets"):
        PrivateContainerd(Path("/tmp/" + "x" * 100))


def test_a_daemon_that_can_not_start_says_why_and_leaves_nothing(containerd):
    root = Path(tempfile.mkdtemp(prefix="expedited-"))
    daemon = PrivateContainerd(root, containerd.binaries)
    daemon.socket.mkdir()
    with pytest.raises(ExpeditedError, match=r"the private containerd (ended|did not answer)"), daemon:
        pass
    assert _traces(root) == []


_RUNS_A_POD = """
    import signal, sys, time
    from pathlib import Path
    from expedited.demo.cri import ContainerSpec, PodSpec
    from expedited.demo.daemon import PrivateContainerd
    from expedited.demo.image import HOG_IMAGE, import_workloads
    from support.ctr import run_by_ctr

    def interrupt(number, frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    with PrivateContainerd(Path(sys.argv[1])) as daemon:
        import_workloads(daemon)
        pod = daemon.cri.run_pod()
        hog = daemon.cri.create_container(pod, ContainerSpec(HOG_IMAGE, ("/hog", "--children", "2", "--threads", "1")))
        daemon.cri.start_container(hog)
        daemon.cri.limit_cpu(hog, quota_us=1000)
        run_by_ctr(daemon, "other", "/hog")
        print("running", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_leaves_nothing_of_its_containerd(containerd, number):
    root = Path(tempfile.mkdtemp(prefix="expedited-"))
    command = [sys.executable, "-c", textwrap.dedent(_RUNS_A_POD), str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}  # for support
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        assert len(_traces(root)) >= 4
        sockets = leftovers.shim_sockets(root / "state")
        program.send_signal(number)
        program.wait(timeout=60)
        assert "KeyboardInterrupt" in program.stderr.read()
    assert _traces(root) == []
    assert len(sockets) == 3
    assert [socket for socket in sockets if socket.exists()] == []


def test_a_signal_that_comes_while_undisturbed_takes_effect_after_it():
    done = []

    def work() -> None:
        with leftovers.undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("work")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["work"]


def _traces(root: Path) -> list[str]:
    """Whatever there is of a containerd with this root: processes, mounts, cgroups, its directory."""
    cgroups = [str(path) for name in ("cpu", "memory", "pids", "unified", ".") for path in _cgroups(name, root.name)]
    processes = [
        f"process {pid}" for path in ("containerd.sock", "config.toml", "runc") for pid in _processes(root / path)
    ]
    return [*cgroups, *processes, *leftovers.mounts_below(root), *([str(root)] if root.exists() else [])]


def _cgroups(hierarchy: str, name: str) -> list[Path]:
    return list((Path("/sys/fs/cgroup") / hierarchy).glob(f"{name}*"))


def _processes(path: Path) -> list[int]:
    return leftovers.processes_naming(str(path))

"""What is missing is caused for real: capabilities dropped, namespaces of its own, file systems mounted otherwise."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from expedited.teardown.hierarchies import hierarchies

# include/uapi/asm-generic/unistd.h; the first two are the same on every architecture
_PIDFD_OPEN = 434
_PROCESS_MRELEASE = 448
_FANOTIFY_INIT = {"x86_64": 300, "aarch64": 262}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which has something to lose")


@pytest.mark.parametrize(
    ("capability", "level", "also"),
    [
        ("sys_admin", "degraded", {"fanotify": "degraded", "process events": "ok"}),
        ("kill", "degraded", {}),
        ("sys_nice", "degraded", {"real-time": "degraded", "boost": "degraded"}),
        ("ipc_lock", "degraded", {}),  # and the lock itself as far as RLIMIT_MEMLOCK reaches
        ("sys_resource", "degraded", {"oom_score_adj": "degraded"}),
    ],
)
def test_a_capability_that_is_missing_is_named_and_so_is_what_it_takes_away(
    examined_under: Callable, capability: str, level: str, also: dict[str, str]
) -> None:
    said = examined_under("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")
    assert said.level(f"CAP_{capability.upper()}") == level
    for name, other in also.items():
        assert said.level(name) == other, said.findings[name]
    assert said.works
    assert said.exit_code == 0


def test_a_cgroup_namespace_of_our_own_is_named_where_process_1s_is_not_to_be_had(examined_under: Callable) -> None:
    said = examined_under("unshare", "--cgroup", "setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
    assert said.level("cgroup namespace") == "degraded"
    assert "SYS_PTRACE" in said.findings["cgroup namespace"]["remedy"]
    assert said.works


def test_a_cgroup_namespace_that_process_1_has_as_well_is_the_nodes(examined_under: Callable) -> None:
    said = examined_under("unshare", "--cgroup", "--pid", "--fork", "--mount-proc", "--kill-child")
    assert said.level("cgroup namespace") == "ok"
    assert said.findings["cgroup namespace"]["found"] == "process 1's"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (_PROCESS_MRELEASE, "process_mrelease"),
        (_PIDFD_OPEN, "pidfds"),
    ],
)
@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSYS, ("not in this kernel", "none")), (errno.EPERM, ("forbidden", "none", "not allowed"))],
)
def test_a_system_call_that_is_missing_or_forbidden_breaks_what_needs_it_and_nothing_else(
    examined_under: Callable, without_call: Callable, number: int, name: str, code: int, words: tuple[str, ...]
) -> None:
    said = examined_under(*without_call(number, code))
    assert [other for other, finding in said.findings.items() if finding["level"] == "broken"] == [name]
    assert said.found(name).startswith(words)
    assert said.exit_code == 1


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSYS, "not in this kernel"), (errno.EPERM, "not allowed")])
def test_without_the_gate_the_main_job_hangs_on_process_events(
    examined_under: Callable, without_call: Callable, code: int, words: str
) -> None:
    no_gate = without_call(_FANOTIFY_INIT[platform.machine()], code)
    said = examined_under(*no_gate)
    assert said.found("fanotify").startswith(words)
    assert (said.level("fanotify"), said.level("process events"), said.exit_code) == ("degraded", "ok", 0)
    # As in a pod whose network is its own, and that can't reach the node's
    pod = ("unshare", "--net", "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    said = examined_under(*pod, *no_gate)
    assert (said.level("fanotify"), said.exit_code) == ("broken", 1)
    refused = "refused; they are told in the first network namespace only (not in a kind node's)"
    assert said.found("process events") == f"not to be had ({refused})"


@pytest.mark.parametrize(("limit", "level", "exit_code"), [("instances", "broken", 1), ("watches", "degraded", 0)])
def test_inotify_that_is_used_up_is_named_by_its_sysctl(
    examined_under: Callable, without_call: Callable, limit: str, level: str, exit_code: int
) -> None:
    # inotify_init1(2), inotify_add_watch(2)
    numbers = {"x86_64": (294, 254), "aarch64": (26, 27)}[platform.machine()]
    number, code = (numbers[0], errno.EMFILE) if limit == "instances" else (numbers[1], errno.ENOSPC)
    said = examined_under(*without_call(number, code))
    assert (said.level("inotify"), said.exit_code) == (level, exit_code)
    at_most = Path(f"/proc/sys/fs/inotify/max_user_{limit}").read_text().strip()
    assert f"fs.inotify.max_user_{limit} is {at_most}" in said.found("inotify")
    assert f"sysctl fs.inotify.max_user_{limit}={2 * int(at_most)}" in said.findings["inotify"]["remedy"]


def test_inotify_of_a_user_who_may_have_none_is_caused_for_real(examined_under: Callable) -> None:
    none = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    said = examined_under("unshare", "--user", "--map-root-user", "sh", "-c", none, "sh")
    assert said.level("inotify") == "broken"


def test_memory_that_may_not_be_locked_is_degraded(examined_under: Callable) -> None:
    said = examined_under("prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock")
    assert said.level("memory lock") == "degraded"
    assert said.works


def test_an_ordinary_user_is_told_that_the_main_job_can_not_work(examined_under: Callable, run_dir: Path) -> None:
    run_dir.chmod(0o700)
    said = examined_under("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert said.exit_code == 1
    assert not said.works
    assert said.level("fanotify") in ("broken", "degraded")  # since Linux 6.6 process events are everybody's
    assert "user 65534" in said.found("CAP_SYS_ADMIN")
    # What this user can't see is not called missing
    for name in ("agent", "striker", "containerd", "NRI", "state directories"):
        assert said.level(name) == "unknown", said.findings[name]
        assert "closed to this user" in said.found(name)
    for name in ("agent", "striker"):
        assert "can't be told" in said.findings[name]["costs"]
        assert said.findings[name]["remedy"] == "ask as root"


def test_in_a_user_namespace_of_its_own_there_is_no_gate(examined_under: Callable) -> None:
    said = examined_under("unshare", "--user", "--map-root-user")
    assert said.level("user namespace") == "broken"
    assert said.level("CAP_SYS_ADMIN") == "ok"
    assert said.level("fanotify") == "broken"
    assert said.exit_code == 1


def test_in_a_pid_namespace_without_a_runtime_nobody_could_be_recognised(examined_under: Callable) -> None:
    said = examined_under("unshare", "--pid", "--fork", "--mount-proc")
    assert said.level("pid namespace") == "broken"
    assert said.exit_code == 1


def test_a_runtime_in_sight_makes_up_for_a_pid_namespace(examined_under: Callable, run_dir: Path) -> None:
    # As on a node that is a container itself: the runtime is where we are. It goes by its name in /proc.
    shutil.copy("/bin/sleep", run_dir / "containerd")
    beside_it = f'{run_dir}/containerd 60 >&- & until grep -qs containerd /proc/[0-9]*/comm; do :; done; "$@"'
    said = examined_under("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", beside_it, "sh")
    assert said.level("pid namespace") == "ok", said.findings["pid namespace"]
    assert "containerd" in said.found("pid namespace")


def test_cgroups_that_are_read_only_cost_the_boost_and_not_the_main_job(examined_under: Callable) -> None:
    mounts = hierarchies()
    legacy = any(name in mounts.controllers for name in ("memory", "pids", "freezer", "cpu"))
    root = mounts.controllers["cpu"] if legacy else mounts.unified
    said = examined_under("unshare", "--mount", "sh", "-c", f'mount -o remount,bind,ro {root} && exec "$@"', "sh")
    assert said.level("writable") == "degraded"
    assert said.level("boost") == "unknown"
    assert said.works


def test_version_2_alone_has_cgroup_kill_and_names_the_controllers_it_lacks(examined_under: Callable) -> None:
    mount = 'umount -R -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    said = examined_under("unshare", "--mount", "sh", "-c", mount, "sh")
    assert said.found("version") == "2, at /sys/fs/cgroup"
    assert said.level("version") == "ok"
    assert said.found("cgroup.kill") == "there"
    # Those that this machine has in version 1's hierarchies are not in version 2's
    lacking = {"memory", "cpu", "cpuset", "pids"} & set(hierarchies().controllers)
    assert (said.level("controllers") == "degraded") is bool(lacking)
    missing = set(said.found("controllers").partition("missing: ")[2].split())
    assert missing >= lacking
    assert said.level("boost") in ("ok", "degraded")
    assert said.works


def test_no_cgroups_at_all_is_broken(examined_under: Callable) -> None:
    said = examined_under("unshare", "--mount", "sh", "-c", 'umount -R -l /sys/fs/cgroup && exec "$@"', "sh")
    assert said.level("version") == "broken"
    assert said.exit_code == 1


def test_a_temporary_directory_that_forbids_execution_is_no_missing_feature(
    examined_under: Callable, tmp_path: Path
) -> None:
    mount = f'mount -t tmpfs -o noexec none {tmp_path} && export TMPDIR={tmp_path} && exec "$@"'
    said = examined_under("unshare", "--mount", "sh", "-c", mount, "sh")
    assert said.level("fanotify") == "ok"
    assert said.level("exec events") == "ok"
    assert "noexec" in said.found("exec events")

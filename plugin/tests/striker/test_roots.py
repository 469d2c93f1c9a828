"""Which directories are gated: those that are there, those that come, whatever was missed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expedited.striker import fanotify
from expedited.striker.roots import Roots


@pytest.fixture
def group() -> Iterator[int]:
    descriptor = fanotify.open_group()
    yield descriptor
    os.close(descriptor)


def names(roots: Roots) -> set[str]:
    return {os.path.basename(directory) for directory in roots.marked}  # noqa: PTH119


def test_what_is_there_is_marked_and_what_comes_too(group: int, tmp_path: Path) -> None:
    (tmp_path / "ns" / "old").mkdir(parents=True)
    roots = Roots(group, [f"{tmp_path}/*"], frozenset(), hold_executions=False)
    roots.scan()
    assert names(roots) == {"old"}
    (tmp_path / "ns" / "new").mkdir()
    assert roots.drain() == []
    assert names(roots) == {"old", "new"}


def test_a_directory_that_goes_is_told_of(group: int, tmp_path: Path) -> None:
    (tmp_path / "ns" / "c1").mkdir(parents=True)
    roots = Roots(group, [f"{tmp_path}/*"], frozenset(), hold_executions=False)
    roots.scan()
    (tmp_path / "ns" / "c1").rmdir()
    assert roots.drain() == [f"{tmp_path}/ns/c1"]
    assert names(roots) == set()


def test_by_way_of_a_symbolic_link_a_container_has_its_real_name(group: int, tmp_path: Path) -> None:
    """Docker's is below /var/run where that is a link to /run; a file that is opened is known by its real name alone."""
    (tmp_path / "run" / "ns" / "c1").mkdir(parents=True)
    (tmp_path / "var-run").symlink_to("run")
    roots = Roots(group, [f"{tmp_path}/var-run/*"], frozenset(), hold_executions=False)
    roots.scan()
    assert roots.marked == (f"{tmp_path}/run/ns/c1",)
    (tmp_path / "run" / "ns" / "c1").rmdir()
    assert roots.drain() == [f"{tmp_path}/run/ns/c1"]


def test_namespaces_and_roots_may_come_later(group: int, tmp_path: Path) -> None:
    base = tmp_path / "run" / "containerd" / "runc"
    roots = Roots(group, [f"{base}/*", f"{tmp_path}/run/crun"], frozenset(), hold_executions=False)
    roots.scan()
    for place in (tmp_path / "run", base.parent, base, base / "k8s.io", base / "k8s.io" / "c1"):
        place.mkdir()
        roots.drain()
    (tmp_path / "run" / "crun" / "c2").mkdir(parents=True)
    roots.drain()
    assert names(roots) == {"c1", "c2"}


def test_all_of_a_path_may_come_between_two_looks(group: int, tmp_path: Path) -> None:
    base = tmp_path / "run" / "containerd" / "runc"
    roots = Roots(group, [f"{base}/*"], frozenset(), hold_executions=False)
    roots.scan()
    (base / "moby" / "c1").mkdir(parents=True)
    roots.drain()
    assert names(roots) == {"c1"}


def test_a_root_that_goes_and_comes_again_is_gated_again(group: int, tmp_path: Path) -> None:
    base = tmp_path / "runc"
    roots = Roots(group, [f"{base}/*"], frozenset(), hold_executions=False)
    for name in ("c1", "c2", "c3"):
        (base / "k8s.io" / name).mkdir(parents=True)
        roots.scan()
        assert name in names(roots)
        shutil.rmtree(base)
        roots.drain()
        assert names(roots) == set()
    (base / "k8s.io" / "c4").mkdir(parents=True)
    roots.drain()
    assert names(roots) == {"c4"}


def test_events_that_were_lost_are_made_up_for(group: int, tmp_path: Path) -> None:
    """IN_Q_OVERFLOW: more happened than the kernel keeps."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    namespace = tmp_path / "ns"
    (namespace / "goes").mkdir(parents=True)
    roots = Roots(group, [f"{tmp_path}/*"], frozenset(), hold_executions=False)
    roots.scan()
    for number in range(kept // 2 + 1):  # two events each
        place = f"{namespace}/{number}"
        os.mkdir(place)  # noqa: PTH102
        os.rmdir(place)  # noqa: PTH106
    (namespace / "late").mkdir()
    (namespace / "goes").rmdir()
    deleted = roots.drain()
    assert names(roots) == {"late"}
    assert f"{namespace}/goes" in deleted


def test_only_what_is_awaited_leads_to_another_look(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = Roots(group, [f"{tmp_path}/crun", f"{tmp_path}/docker/runc/*"], frozenset(), hold_executions=False)
    roots.scan()
    looks: list[None] = []
    scan = roots.scan
    monkeypatch.setattr(roots, "scan", lambda: (looks.append(None), scan()))
    (tmp_path / "somebody.pid").write_text("1")
    (tmp_path / "somebody").mkdir()
    roots.drain()
    assert not looks
    (tmp_path / "docker" / "runc" / "moby" / "c1").mkdir(parents=True)
    (tmp_path / "crun" / "c2").mkdir(parents=True)
    roots.drain()
    assert names(roots) == {"c1", "c2"}


def test_without_inotify_watches_the_directories_are_looked_at_instead(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(directory: str, mask: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    (tmp_path / "ns" / "old").mkdir(parents=True)
    roots = Roots(group, [f"{tmp_path}/*"], frozenset(), hold_executions=False, complain=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(roots.inotify, "watch", none_left)
        roots.scan()
        assert names(roots) == {"old"}
        (tmp_path / "ns" / "new").mkdir()
        (tmp_path / "ns" / "asked-for").mkdir()
        assert roots.ensure("asked-for")
        roots.look_again()
        assert names(roots) == {"old", "asked-for", "new"}
        assert roots.look_again() == []  # not so soon
        (tmp_path / "ns" / "old").rmdir()
        patch.setattr(roots, "_look_again_at", 0.0)
        assert roots.look_again() == [f"{tmp_path}/ns/old"]
    assert len(said) == 1
    assert "max_user_watches" in said[0]
    monkeypatch.setattr(roots, "_look_again_at", 0.0)  # there are some again
    roots.look_again()
    (tmp_path / "ns" / "late").mkdir()
    roots.drain()
    assert "late" in names(roots)
    assert len(said) == 1


def test_a_runtime_that_is_installed_anew_is_held_again(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> set[int]:
        # proc_pid_fdinfo(5) of a fanotify group: a line a mark, numbers in hexadecimal
        lines = Path(f"/proc/self/fdinfo/{group}").read_text().splitlines()
        return {int(line.split("ino:")[1].split()[0], 16) for line in lines if line.startswith("fanotify ino:")}

    # This machine's own runtimes are not a test's to hold
    monkeypatch.setattr("expedited.striker.roots._BINARY_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = tmp_path / "runc"
    binary.write_text("old")
    roots = Roots(group, [], frozenset(), hold_executions=True)
    roots.scan()
    assert held() == {binary.stat().st_ino}
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").rename(binary)
    roots.look_again()
    assert binary.stat().st_ino in held()


def test_one_container_can_be_asked_for(group: int, tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    roots = Roots(group, [f"{tmp_path}/*"], frozenset({"spared"}), hold_executions=False)
    roots.scan()
    (tmp_path / "ns" / "c1").mkdir()
    (tmp_path / "ns" / "spared").mkdir()
    assert roots.ensure("c1")
    for wrong in ("spared", "no-such", "", ".", "..", "../ns", "/etc"):
        assert not roots.ensure(wrong)
    assert names(roots) == {"c1"}


@pytest.mark.parametrize("attempt", range(3))
def test_a_new_containers_kill_is_never_missed(
    node: Any, make_striker: Any, scratch_cgroup: Any, runc_binary: Path, attempt: int
) -> None:
    """A directory, and at once the kill: the runtime is held as it is executed until the directory is marked."""
    place = runc_binary.parent
    striker = make_striker("--hold-executions=on", env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}"})
    assert str(runc_binary) in striker.status()["binaries"]
    for number in range(8):
        name = f"c{number}"
        cgroup = scratch_cgroup.child(name)
        node.container("prototype", cgroup, "--bytes", "4M", "--children", "1")
        # One rename: the directory is there, and everything in it
        (node.namespace / "prototype").rename(node.namespace / name)
        node.run("kill", name, "9")
        report = striker.report_of(name)
        assert report.outcome == "struck"
    assert striker.status()["executions"] >= 8

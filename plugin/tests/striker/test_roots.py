"""Which directories are gated: those that are there, those that come, whatever was missed."""

from __future__ import annotations

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

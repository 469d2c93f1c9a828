"""Finding a container's cgroup on version 2, version 1 and a mixture, and reading one that may vanish at any moment."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from expedited.errors import ExpeditedError
from expedited.teardown import Cgroup, CgroupGone, TargetError, strike
from expedited.teardown import cgroup as cgroup_module
from expedited.teardown.hierarchies import Hierarchies, hierarchies


def test_a_path_a_directory_and_a_process_lead_to_the_same_cgroup(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "1M", cgroup=scratch_cgroup)
    if scratch_cgroup.version == 2:  # on a hybrid host it would be in version 1's cgroups of this test run as well
        for root in set(hierarchies().controllers.values()):
            Path(root, "cgroup.procs").write_text(str(process.pid))
    found = Cgroup.find(scratch_cgroup.path)
    assert (found.version, found.path) == (scratch_cgroup.version, scratch_cgroup.path)
    for directory in scratch_cgroup.directories.values():
        assert Cgroup.find(str(directory)) == found
        assert Cgroup.find(f"{directory}/") == found
    assert Cgroup.of_process(process.pid).procs_dir == found.procs_dir
    assert found.pids() == [process.pid]
    assert not found.is_empty()


def test_the_runtimes_record_leads_to_it(scratch_cgroup: Any) -> None:
    record = {
        "" if controller == "unified" else controller: str(directory)
        for controller, directory in scratch_cgroup.directories.items()
    }
    assert Cgroup.from_runtime(record) == Cgroup.find(scratch_cgroup.path)


@pytest.mark.parametrize("record", [{}, {"memory": "/nowhere/at/all"}, {"": "/etc"}])
def test_a_record_of_no_mounted_hierarchy_is_a_cgroup_that_is_gone(record: dict[str, str]) -> None:
    with pytest.raises(CgroupGone):
        Cgroup.from_runtime(record)


def test_a_symbolic_link_to_a_cgroup_is_that_cgroup(scratch_cgroup: Any, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(next(iter(scratch_cgroup.directories.values())))
    assert Cgroup.find(str(link)).path == scratch_cgroup.path


@pytest.mark.parametrize("name", ["", "kubepods", "../..", "/../etc", "/a/../..", "/etc", "/proc/self", "/.", "//"])
def test_a_name_that_leads_out_of_the_hierarchies_is_refused(name: str) -> None:
    with pytest.raises((TargetError, CgroupGone)) as refused:
        strike(Cgroup.find(name))  # what is taken for the root is found, and then refused
    assert "\n" not in str(refused.value)


def test_a_directory_name_out_of_a_hierarchy_by_dots_is_no_cgroup(scratch_cgroup: Any) -> None:
    directory = next(iter(scratch_cgroup.directories.values()))
    with pytest.raises(TargetError):
        Cgroup.find(f"{directory}/../../../../../../etc")


def test_a_process_that_does_not_exist() -> None:
    with pytest.raises(CgroupGone, match="process 4194305 does not exist"):
        Cgroup.of_process((1 << 22) + 1)


def test_the_parents_of_our_own_cgroup_are_refused_too() -> None:
    mounts = hierarchies()
    for own in Cgroup.own_directories():
        root = mounts.root_of(own)
        assert root is not None
        path = own[len(root) :]
        while path:
            try:
                found = Cgroup.find(root + path)
            except CgroupGone:
                break  # in none of the hierarchies that a container could be in
            with pytest.raises(TargetError):
                strike(found)
            path = path.rpartition("/")[0]


# Linux prints a controller's co-mounted neighbours in one line, and what containers are in on a hybrid host is version 1
def mixture(monkeypatch: pytest.MonkeyPatch, root: Path, *, unified: str | None, **controllers: str) -> None:
    for place in filter(None, [unified, *controllers.values()]):
        (root / place).mkdir(exist_ok=True)
    mounts = Hierarchies(
        f"{root}/{unified}" if unified else None, {name: f"{root}/{place}" for name, place in controllers.items()}
    )
    monkeypatch.setattr(cgroup_module, "hierarchies", lambda: mounts)


def test_on_a_hybrid_host_version_1_is_chosen_where_the_container_is_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mixture(monkeypatch, tmp_path, unified="unified", memory="memory", cpu="cpu,cpuacct", cpuacct="cpu,cpuacct")
    for place in ("unified", "memory", "cpu,cpuacct"):
        (tmp_path / place / "pod").mkdir()
    found = Cgroup.find("/pod")
    assert (found.version, found.procs_dir) == (1, f"{tmp_path}/memory/pod")
    assert (found.cpu_dir, found.cpuset_dir, found.freezer_dir) == (f"{tmp_path}/cpu,cpuacct/pod", None, None)


def test_on_a_hybrid_host_version_2_is_chosen_where_only_it_has_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mixture(monkeypatch, tmp_path, unified="unified", memory="memory", cpu="cpu")
    (tmp_path / "unified" / "pod").mkdir()
    found = Cgroup.find("/pod")
    assert (found.version, found.procs_dir, found.memory_dir) == (2, f"{tmp_path}/unified/pod", None)


def test_a_controller_in_which_the_container_is_in_the_root_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mixture(monkeypatch, tmp_path, unified="unified", memory="memory", cpu="cpu")
    found = Cgroup.from_runtime({"memory": f"{tmp_path}/memory/pod", "cpu": f"{tmp_path}/cpu"})
    assert (found.memory_dir, found.cpu_dir) == (f"{tmp_path}/memory/pod", None)


def test_the_mount_options_are_no_controllers() -> None:
    assert not {"rw", "ro", "nosuid"} & set(hierarchies().controllers)


def test_a_vanished_cgroup_is_empty_and_can_be_asked_anything(scratch_cgroup: Any) -> None:
    inner = scratch_cgroup.child("gone")
    cgroup = Cgroup.find(inner.path)
    for directory in inner.directories.values():
        directory.rmdir()
    assert cgroup.pids() == []
    assert cgroup.is_empty()
    assert cgroup.memory() is None
    assert cgroup.drop_page_cache() == 0
    assert cgroup.freeze() is False
    assert cgroup.thaw() is False
    assert cgroup.kill() is (scratch_cgroup.version == 2)
    with pytest.raises(CgroupGone):
        Cgroup.find(inner.path)


def test_a_cgroup_that_comes_and_goes_never_raises_anything_but_gone(scratch_cgroup: Any) -> None:
    """Another thread makes and removes it all the while."""
    path = f"{scratch_cgroup.path}/flicker"
    places = [directory / "flicker" for directory in scratch_cgroup.directories.values()]
    done = threading.Event()

    def flicker() -> None:
        while not done.is_set():
            for place in places:
                place.mkdir()
                (place / "deeper").mkdir()
            for place in places:
                (place / "deeper").rmdir()
                place.rmdir()

    thread = threading.Thread(target=flicker)
    thread.start()
    found = missed = 0
    try:
        while found < 200 or missed < 20:
            try:
                cgroup = Cgroup.find(path)
                cgroup.pids()
                cgroup.is_empty()
                cgroup.memory()
                cgroup.thaw()
                found += 1
            except ExpeditedError:
                missed += 1
    finally:
        done.set()
        thread.join()


def test_without_descriptors_to_list_it_a_cgroup_is_not_taken_for_empty(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "1M", cgroup=scratch_cgroup)
    cgroup = Cgroup.find(scratch_cgroup.path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 1
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 8, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012
            while True:
                taken.append(os.dup(0))
        with pytest.raises(OSError, match="Too many open files"):
            cgroup.pids()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)

"""What a pod that goes leaves in the page cache, in real cgroups."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expedited.agent.pod_cache import PodCache
from expedited.sighting import Container, Sighting, State
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.policy import Mode, PageCache, Policy

MakeCgroup = Callable[[], Any]
FILE_BYTES = 8 << 20


@contextmanager
def reader_in(cgroup: Any, file: Path) -> Iterator[int]:
    """A process in the cgroup that has filled the page cache with the file, and waits."""
    file.write_bytes(os.urandom(FILE_BYTES))
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    program = "import sys; sys.stdin.readline(); open(sys.argv[1], 'rb').read(); print('read', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        cgroup.add(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "read\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def sleeper_in(cgroup: Any) -> Iterator[None]:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        cgroup.add(process.pid)
        yield
    finally:
        process.kill()
        process.wait()


def pid_of_one_that_has_ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def container(pid: int, policy: Policy | None = None) -> Container:
    seen = Sighting("c1", sandbox_id="s1", sandbox=False, pid=pid, state=State.RUNNING)
    return Container(seen, policy or Policy(), (), {})


@pytest.fixture
def pod(make_cgroup: MakeCgroup) -> Any:
    """With a version that has a memory controller here."""
    return make_cgroup()


@pytest.fixture
def cache_file() -> Iterator[Path]:
    # On a disk: what is in tmpfs is no page cache that could be dropped
    path = Path(f"/var/tmp/expedited-test-cache-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def cached_bytes(pod: Any) -> int:
    memory = Cgroup.find(pod.path).memory()
    assert memory is not None
    return memory.file_bytes


async def end_container(pod: Any, file: Path, cache: PodCache) -> None:
    """A container of the pod lives, is learnt, and goes: its cache moves up to the pod."""
    main = pod.child("main")
    with reader_in(main, file) as pid:
        await cache.learn(container(pid))
    for directory in main.directories.values():
        directory.rmdir()
    assert cached_bytes(pod) >= FILE_BYTES // 2


async def test_the_cache_of_a_pod_that_has_gone_is_given_back(pod: Any, cache_file: Path) -> None:
    cache = PodCache()
    await end_container(pod, cache_file, cache)
    before = cached_bytes(pod)

    await cache.drop("s1", [container(0)])

    give_up_at = time.monotonic() + 30
    while cached_bytes(pod) >= before // 10:  # the counter may lag
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "policies",
    [
        [Policy(page_cache=PageCache.KEEP)],
        [Policy(mode=Mode.OBSERVE)],
        [Policy(mode=Mode.OFF)],
        [Policy(), Policy(page_cache=PageCache.KEEP)],
        [],
    ],
    ids=["keep", "observe", "off", "one of them keeps", "nobody is known any more"],
)
async def test_policies_that_say_so_keep_it(pod: Any, cache_file: Path, policies: list[Policy]) -> None:
    """As they are in the end: a running pod may be annotated."""
    cache = PodCache()
    await end_container(pod, cache_file, cache)
    before = cached_bytes(pod)

    await cache.drop("s1", [container(0, policy) for policy in policies])

    assert cached_bytes(pod) >= before // 2


async def test_a_pod_in_which_somebody_lives_is_left_alone(pod: Any, cache_file: Path) -> None:
    cache = PodCache()
    await end_container(pod, cache_file, cache)
    before = cached_bytes(pod)
    with sleeper_in(pod):
        await cache.drop("s1", [container(0)])
        assert cached_bytes(pod) >= before // 2


async def test_what_was_forgotten_or_never_learnt_is_left_alone(pod: Any, cache_file: Path) -> None:
    cache = PodCache()
    await end_container(pod, cache_file, cache)
    before = cached_bytes(pod)
    cache.forget("s1")
    await cache.drop("s1", [container(0)])
    await cache.drop("s2", [container(0)])
    assert cached_bytes(pod) >= before // 2


async def test_a_container_that_has_ended_or_is_a_sandbox_teaches_nothing() -> None:
    cache = PodCache()
    await cache.learn(container(pid_of_one_that_has_ended()))
    sandbox = container(os.getpid())
    await cache.learn(replace(sandbox, seen=replace(sandbox.seen, sandbox=True)))
    assert not cache._cgroups

"""What is read out of memory.stat."""

from __future__ import annotations

import pytest

from expedited.teardown.memory_stat import anon_bytes, memory
from expedited.teardown.report import Memory

V1 = b"cache 1\nrss 2\ntotal_cache 7000\ntotal_rss 4096\ntotal_rss_huge 9\ntotal_shmem 3000\ntotal_swap 5\n"
V2 = b"anon 4096\nfile 7000\nanon_thp 9\nshmem 3000\nfile_mapped 8\n"


@pytest.mark.parametrize(("stat", "version"), [(V1, 1), (V2, 2)])
def test_the_lines_of_each_version(stat: bytes, version: int) -> None:
    assert anon_bytes(stat, version) == 4096
    assert memory(stat, version, swap_bytes=5) == Memory(4096, 4000, 3000, 5)  # shmem is in the page cache, and no file


@pytest.mark.parametrize("version", [1, 2])
def test_what_it_does_not_say_is_0(version: int) -> None:
    assert anon_bytes(b"", version) == 0
    assert memory(b"pgfault 12\n", version) == Memory(0, 0, 0, 0)


def test_shmem_may_be_counted_before_the_cache_that_holds_it() -> None:
    assert memory(b"anon 1\nfile 10\nshmem 20\n", 2).file_bytes == 0

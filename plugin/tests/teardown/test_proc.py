"""What the small files of /proc say, and what is made of them when they say nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expedited.teardown import proc
from expedited.teardown.proc import cpus_are_taken


def test_busy_loops_take_every_cpu(busy_loops: Callable[[], Any]) -> None:
    with busy_loops():
        looks = []
        for _ in range(20):
            looks.append(cpus_are_taken())
            time.sleep(0.01)
    assert sum(looks) >= 15


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("0.00 0.00 0.00 {cpus}/80 11206\n", False),
        ("0.00 0.00 0.00 {more}/80 11206\n", True),
        ("9.00 9.00 9.00 1/80 11206\n", False),
        ("", False),
        ("0.00 0.00 0.00 many/80 1\n", False),
        (None, False),
    ],
)
def test_the_runnable_threads_of_the_moment_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, taken: bool
) -> None:
    file = tmp_path / "loadavg"
    if text is not None:
        cpus = os.cpu_count() or 1
        file.write_text(text.format(cpus=cpus, more=cpus + 1))
    monkeypatch.setattr(proc, "_LOADAVG", str(file))
    assert cpus_are_taken() is taken

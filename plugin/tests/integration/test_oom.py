"""A real container that is out of memory: the kernel's kill is reaped and reported, and the runtime tells it as ever."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from expedited.demo.cri import ContainerSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.report import Fate, Outcome

MIB = 1 << 20
_GROWS = "grown = []\nwhile True: grown.append(bytearray(b'x' * (1 << 20)))"


#: Who is killed and gone before it was found needs no help, and makes no report.
_TRIES = 5


def test_a_container_killed_by_the_kernel_is_reaped_and_reported(
    containerd: PrivateContainerd,
    striker: Any,
    make_container: Callable[..., Any],
    bells: Callable[[Any], int],
) -> None:
    spec = ContainerSpec(HOG_IMAGE, ("/hog", "--bytes", "64M"), memory_limit_bytes=128 * MIB)
    report = None
    for number in range(_TRIES):
        hog = make_container(spec=replace(spec, name=f"hog-{secrets.token_hex(3)}"))
        containerd.cri.wait_for_output(hog.id, "READY")
        striker.wait_gated(hog.id)
        while bells(striker) < number + 2:  # the sandboxes are the others
            assert striker.process.poll() is None
        Path(f"/proc/{hog.pid}/oom_score_adj").write_text("1000")  # whom the kernel takes first
        members = Path(str(Cgroup.of_process(hog.pid).memory_dir)) / "cgroup.procs"
        join = partial(members.write_text, "0")  # 0: who writes it
        with subprocess.Popen([sys.executable, "-c", _GROWS], preexec_fn=join) as grower:
            while containerd.cri.container(hog.id).state != "exited":
                assert striker.process.poll() is None
            grower.kill()
        assert containerd.cri.container(hog.id).exit_code == 137
        with suppress(AssertionError):
            report = striker.report_of(hog.id, timeout_seconds=8)
            break
    assert report is not None
    assert (report.trigger, report.outcome, report.signalled_seconds) == ("oom", Outcome.STRUCK, None)
    fates = {process.pid: process.fate for process in report.processes}
    assert fates[hog.pid] in (Fate.REAPED, Fate.LOST_RACE, Fate.GONE)

"""Cgroups as the node has them, from a cgroup namespace like a container's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from expedited.striker.cgroup_namespace import FIRST, join_nodes

# include/uapi/linux/capability.h, of those that the chart asks for
_BITS = {"KILL": 5, "IPC_LOCK": 14, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "SYS_NICE": 23, "SYS_RESOURCE": 24}
_MANIFEST = Path(__file__).resolve().parents[3] / "deploy/manifests/base/daemonset.yaml"
_PROGRAM = """
import sys
from expedited.striker.cgroup_namespace import join_nodes
print(open(f"/proc/{sys.argv[1]}/cgroup").read().splitlines()[-1])
print(join_nodes(f"/proc/{sys.argv[1]}/ns/cgroup"))
print(open("/proc/self/cgroup").read().splitlines()[-1])
"""


def _of_the_chart() -> set[str]:
    (container,) = yaml.safe_load(_MANIFEST.read_text())["spec"]["template"]["spec"]["containers"]
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    held = int(line.split()[1], 16)
    # A machine that is a container itself may not have them all to give
    return {name for name in container["securityContext"]["capabilities"]["add"] if held >> _BITS[name] & 1}


def _from_a_namespace(capabilities: set[str], node_pid: int, cgroup: Path) -> list[str]:
    """What the program says from a cgroup namespace of its own, with these capabilities alone."""
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in sorted(capabilities))])
    confined = ["setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", "--"]
    script = f'echo $$ >{cgroup}/cgroup.procs && exec unshare --cgroup -- "$@"'
    answer = subprocess.run(
        ["sh", "-c", script, "sh", *confined, sys.executable, "-c", _PROGRAM, str(node_pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.split("\n")


def test_the_nodes_own_namespace_is_nothing_to_join() -> None:
    assert join_nodes("/proc/self/ns/cgroup") == ""


def test_in_the_machines_first_namespace_there_is_nothing_to_join() -> None:
    if Path("/proc/self/ns/cgroup").stat().st_ino != FIRST:
        pytest.skip("this machine's processes are in a cgroup namespace below the first")
    # Not one that can't be looked at, either: without CAP_SYS_PTRACE process 1's is such a one
    assert join_nodes("/no/such/namespace") == ""


@pytest.mark.parametrize("missing", ["", "SYS_PTRACE", "SYS_ADMIN"])
def test_the_charts_capabilities_are_what_it_takes_to_join(make_cgroup_v2: object, missing: str) -> None:
    scratch = make_cgroup_v2()  # type: ignore[operator]
    directory = scratch.directories["unified"]
    with subprocess.Popen(["sleep", "60"]) as process:  # stands for process 1: it is where the node's processes are
        try:
            seen, problem, after, *_ = _from_a_namespace(_of_the_chart() - {missing}, process.pid, directory)
        finally:
            process.kill()
    assert "/.." in seen
    if missing:
        assert f"CAP_{missing} is needed" in problem
        assert after == "0::/"
    else:
        assert problem == ""
        assert after == f"0::{scratch.path}"

"""The demo: what it measures, what it writes, and that nothing of it is left."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from expedited.demo import leftovers
from expedited.demo.image import workload_binary
from expedited.demo.measure import Meter
from expedited.demo.run import DemoOptions, run_demo
from expedited.demo.scenarios import SCENARIOS, Comparison, Pair, Stop
from expedited.demo.stage import pod_for, run_striker, stop_once
from expedited.errors import UsageError
from expedited.striker.link import StrikerLink

_IDLE = SCENARIOS[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (DemoOptions(scenarios=("idle", "idel")), "no scenario 'idel': choose from idle, tree, limited, contended"),
        (DemoOptions(pairs=0), "0 pairs"),
        (DemoOptions(workload="postgres"), "no workload 'postgres': choose from redis, stress-ng"),
        (DemoOptions(json_path=Path("/nowhere/at/all.json")), "/nowhere/at/all.json can't be written"),
        (DemoOptions(json_path=Path("/tmp")), "/tmp can't be written"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(options, complaint):
    output = io.StringIO()
    with pytest.raises(UsageError, match=complaint):
        run_demo(options, Console(file=output))
    assert output.getvalue() == ""


def test_figures_are_medians_and_the_ratio_is_that_of_the_pairs():
    def pair(stock: float, expedited: float) -> Pair:
        return Pair(Stop(100, stock, 2 * stock, 137), Stop(100, expedited, 2 * expedited, 137))

    comparison = Comparison(_IDLE, (pair(9.0, 1.0), pair(4.0, 2.0), pair(5.0, 1.25)))
    assert comparison.to_json() == {
        "name": "idle",
        "bytes": 100,
        "stock": {"memory_back_s": 5.0, "gone_s": 10.0, "exit_code": 137, "capped": False},
        "expedited": {"memory_back_s": 1.25, "gone_s": 2.5, "exit_code": 137, "capped": False},
        "ratio": 4.0,
        "pairs": [_pair_json(each) for each in comparison.pairs],
    }


def _pair_json(pair: Pair) -> dict[str, object]:
    return {"stock": pair.stock.to_json(), "expedited": pair.expedited.to_json(), "ratio": pair.ratio}


def test_the_meter_sees_the_memory_go_and_then_the_cgroup_empty(make_cgroup):
    scratch = make_cgroup()
    command = [workload_binary("hog"), "--bytes", "64M"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, preexec_fn=lambda: scratch.add(os.getpid()), start_new_session=True
    ) as hog:
        assert hog.stdout is not None
        assert hog.stdout.readline() == b"READY\n"
        with Meter(scratch.memory_dir, scratch.version) as meter:
            assert meter.anon_bytes >= 0.95 * (64 << 20)  # the counter may lag
            hog.kill()
            measured = meter.wait(30)
    assert measured.memory_back_at is not None
    assert measured.gone_at is not None
    assert measured.memory_back_at <= measured.gone_at


def test_the_meter_gives_up_when_it_is_told_to(make_cgroup):
    scratch = make_cgroup()
    with subprocess.Popen(["sleep", "60"], preexec_fn=lambda: scratch.add(os.getpid())) as sleeper:
        with Meter(scratch.memory_dir, scratch.version) as meter:
            measured = meter.wait(0.05)
        sleeper.kill()
    assert measured.gone_at is None


def test_an_expedited_stop_is_struck_and_a_stock_one_meets_no_gate(containerd):
    pod = pod_for(containerd, _IDLE)
    try:
        log = containerd.root / "striker.log"
        before = log.read_text() if log.exists() else ""
        stock = stop_once(containerd, _IDLE, pod, expedited=False)
        assert (log.read_text() if log.exists() else "") == before
        expedited = stop_once(containerd, _IDLE, pod, expedited=True)
        assert "struck" in log.read_text().removeprefix(before)
    finally:
        containerd.cri.remove_pod(pod.id)
    for stop in (stock, expedited):
        assert (stop.exit_code, stop.capped) == (137, False)
        assert stop.anon_bytes >= 0.95 * _IDLE.bytes
        assert 0 < stop.memory_back_seconds <= stop.gone_seconds


def test_the_striker_ends_with_its_block_and_can_be_asked_within(containerd):
    with run_striker(containerd) as socket:
        with StrikerLink.connect(str(socket)) as link:
            status = link.ask("status")
        assert status["is"] == "status"
    assert not socket.exists()
    assert leftovers.processes_naming(str(socket.parent)) == []


def test_the_demo_writes_what_it_shows_and_leaves_nothing(tmp_path):
    output, path = io.StringIO(), tmp_path / "figures.json"
    options = DemoOptions(pairs=1, workload="redis", json_path=path)
    assert run_demo(options, Console(file=output, width=100)) == 0
    scenarios = json.loads(path.read_text())["scenarios"]
    assert [scenario["name"] for scenario in scenarios] == ["idle", "tree", "limited", "contended"]
    for scenario in scenarios:
        assert scenario["bytes"] >= 0.95 * (512 << 20)
        for side in ("stock", "expedited"):
            assert scenario[side]["exit_code"] == 137
            assert 0 < scenario[side]["memory_back_s"] <= scenario[side]["gone_s"]
        ratios = sorted(pair["ratio"] for pair in scenario["pairs"])
        assert ratios[0] <= scenario["ratio"] <= ratios[-1]
        assert scenario["name"] in output.getvalue()
    assert [len(scenario["pairs"]) for scenario in scenarios] == [3, 3, 1, 1]
    # Of one pair, and on a machine that others may use: a hundred times and more on a quiet one
    assert scenarios[-1]["ratio"] > 3
    assert "redis" in output.getvalue()
    assert "struck" in output.getvalue()
    assert _traces(_root_in(output.getvalue())) == []


_RUN = """
import sys
from expedited.demo.run import DemoOptions, run_demo
sys.exit(run_demo(DemoOptions(scenarios=("contended",))))
"""


def _is_stopping(root: Path) -> bool:
    log = root / "containerd.log"
    return log.exists() and "Kill container" in log.read_text()


# When, and more than how many traces there are of it then
_MOMENTS = {
    "while it starts": (lambda root: (root / "containerd.log").exists(), 0),
    "in the runtime's own stop": (_is_stopping, 5),
    "with a striker": (lambda root: bool(list(root.glob("run/*/striker.sock"))), 5),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", list(_MOMENTS))
def test_the_demo_interrupted_in_a_contended_stop_leaves_nothing(number, moment):
    with subprocess.Popen([sys.executable, "-c", _RUN], stdout=subprocess.PIPE, text=True) as demo:
        root = _root_of(demo)
        is_now, traces = _MOMENTS[moment]
        while not is_now(root):
            assert demo.poll() is None
        assert len(_traces(root)) > traces
        demo.send_signal(number)
        demo.send_signal(number)  # impatience must not stop the clearing
        assert demo.wait(60) == 128 + number
        assert f"interrupted ({number.name})" in demo.stdout.read()
    assert _traces(root) == []


def test_what_a_killed_demo_left_is_cleared_by_the_next():
    with subprocess.Popen([sys.executable, "-c", _RUN], stdout=subprocess.PIPE, text=True) as demo:
        root = _root_of(demo)
        while not list((root / "runc" / "k8s.io").glob("*/state.json")):
            assert demo.poll() is None
        demo.kill()
    assert _traces(root) != []
    assert root in leftovers.clear_abandoned(Path(tempfile.gettempdir()))
    assert _traces(root) == []


@pytest.mark.parametrize(
    ("mode", "cgroup"), [(0o777, "/{name}-{pid}"), (0o700, "/"), (0o700, "/system.slice"), (0o700, "/../..")]
)
def test_what_anybody_could_have_put_there_is_not_believed(tmp_path: Path, mode: int, cgroup: str) -> None:
    """/tmp is everybody's, and what is cleared is cleared as root."""
    root = tmp_path / "expedited-forged"
    root.mkdir()
    root.chmod(mode)
    owner = {"pid": 1, "started": -1, "cgroup": cgroup.format(name=root.name, pid=1)}
    (root / "owner.json").write_text(json.dumps(owner))
    assert leftovers.clear_abandoned(tmp_path) == []
    assert root.exists()


def test_only_a_shims_socket_is_unlinked_as_one(tmp_path: Path) -> None:
    root, precious = tmp_path / "expedited-x", tmp_path / "precious"
    bundle = root / "state/io.containerd.runtime.v2.task/a/b"
    bundle.mkdir(parents=True)
    precious.write_text("")
    (bundle / "bootstrap.json").write_text(json.dumps({"address": f"unix://{precious}"}))
    leftovers.clear(root, leftovers.own_cgroup(root, 1))
    assert precious.exists()
    assert not root.exists()


def _root_of(demo: subprocess.Popen[str]) -> Path:
    # Before it there may be a line on what an earlier one had left
    assert demo.stdout is not None
    return next(_root_in(line) for line in demo.stdout if "private in " in line)


def _root_in(output: str) -> Path:
    return Path(output.partition("private in ")[2].splitlines()[0])


def _traces(root: Path) -> list[str]:
    """Whatever there is of a demo with this root: processes, mounts, cgroups, its directory."""
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    cgroups = [str(path) for hierarchy in hierarchies if hierarchy.is_dir() for path in hierarchy.glob(f"{root.name}*")]
    processes = [
        f"process {entry.name}: {command!r}"
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (command := _command(entry)) and root.name.encode() in command
    ]
    return [*cgroups, *processes, *leftovers.mounts_below(root), *([str(root)] if root.exists() else [])]


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""

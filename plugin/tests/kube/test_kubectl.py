"""``kubectl expedited``, the program, against the API server in test: pods by their label, commands by a WebSocket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from expedited.api.backend import ProcessStatus, Status
from expedited.api.convert import status_to_pb, stop_to_pb, to_plain
from expedited.kubectl import main
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.teardown.report import Outcome, Step

# deploy/tests run this with the program out of krew's archive, too
_PROGRAM = Path(os.environ.get("KUBECTL_EXPEDITED") or Path(sys.executable).with_name("kubectl-expedited"))
_LABELS = {"app.kubernetes.io/name": "expedited"}


@dataclass(frozen=True)
class _Said:
    """What the program came to."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., _Said]


@pytest.fixture
def kubeconfig(api: Any, tmp_path: Path) -> str:
    """Leads to the API server in test."""
    path = tmp_path / "config"
    cluster = {"server": f"https://127.0.0.1:{api.port}", "certificate-authority": api.ca_file}
    contexts = [
        {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
        {"name": "nobody", "context": {"cluster": "c", "user": "nobody"}},
    ]
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": contexts,
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [
                    {"name": "u", "user": {"token": "first-token"}},
                    {"name": "nobody", "user": {"token": "nobodys"}},
                ],
            }
        )
    )

    return str(path)


@pytest.fixture
def kubectl(kubeconfig: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``kubectl(*arguments)``: the program's main, in this process: to import the kubernetes package takes a second."""

    def run(*arguments: str) -> _Said:
        known = [] if "--kubeconfig" in arguments or "--help" in arguments else ["--kubeconfig", kubeconfig]
        monkeypatch.setattr(sys, "argv", ["kubectl-expedited", *arguments[:1], *known, *arguments[1:]])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return _Said(int(end.value.code or 0), said.out, said.err)

    return run


def test_the_program_finds_the_cluster_as_kubectl_does(api: Any, kubeconfig: str) -> None:
    _agents(api, "node-1")
    api.commands = lambda pod, argv: _lines(_status())
    environment = {**os.environ, "KUBECONFIG": kubeconfig}
    said = subprocess.run([_PROGRAM, "status"], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "node-1" in said.stdout
    api.stop()
    said = subprocess.run([_PROGRAM, "status"], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1


def _agents(api: Any, *nodes: str) -> None:
    for node in nodes:
        api.put_pod(
            f"agent-of-{node}", node, namespace="expedited", labels=_LABELS, containers=[{"name": "sidecar"}, {"name": "agent"}]
        )  # fmt: skip


def _lines(*objects: dict[str, Any]) -> tuple[bytes, bytes, int]:
    return "".join(json.dumps(each) + "\n" for each in objects).encode(), b"", 0


def _status(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "version": "1.2.3",
        "striker": "ok",
        "nri": "ok",
        "containerd": "ok",
        "containers": 7,
        "gated": 6,
        "stops": 5,
        "processes": (ProcessStatus("agent", 10, 40 << 20, 30 << 20), ProcessStatus("striker", 11, 12 << 20, 9 << 20)),
        "kernel": "reap-kill",
        "started_at": 1_700_000_000.5,
        "gate_events": 1000,
        "gate_overruns": 2,
        "gate_restarts": 1,
        "kubernetes": "ok",
        **changes,
    }
    return to_plain(status_to_pb(Status(**values)))


def test_status_asks_all_nodes_at_once(api: Any, kubectl: Command) -> None:
    _agents(api, "node-2", "node-1")
    api.commands = lambda pod, argv: _lines(_status(stops=int(pod[-1])))

    answer = kubectl("status")

    assert answer.returncode == 0, answer.stderr
    rows = [line.split() for line in answer.stdout.splitlines()]
    assert [row[0] for row in rows] == ["node", "node-1", "node-2"]
    assert rows[1][1:] == ["1.2.3", "ok", "ok", "ok", "ok", "reap-kill", "6/7", "1", "52", "MiB"]


def test_the_command_is_run_in_the_agents_container(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1")
    asked = []

    def run(pod: str, argv: list[str]) -> tuple[bytes, bytes, int]:
        asked.append((pod, argv))
        return _lines(_status())

    api.commands = run
    kubectl("status")
    assert asked == [("agent-of-node-1", ["expedited", "status", "--json"])]
    (request,) = api.asked("GET", "/api/v1/namespaces/expedited/pods/agent-of-node-1/exec")
    assert request.query["container"] == "agent"


def test_a_node_that_does_not_work_is_an_exit_code(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1")
    out, _, _ = _lines(_status(striker="connection lost"))
    api.commands = lambda pod, argv: (out, b"", 1)
    answer = kubectl("status")
    assert answer.returncode == 1
    assert "connection lost" in answer.stdout
    assert answer.stderr == ""


def test_each_node_that_can_not_say_is_one_line_and_the_others_answer(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1", "node-2", "node-3")
    api.put_pod("agent-of-node-4", "node-4", namespace="expedited", labels=_LABELS)
    with api.store.changed:
        api.store.pods["agent-of-node-4"]["status"]["phase"] = "Pending"

    def run(pod: str, argv: list[str]) -> tuple[bytes, bytes, int]:
        if pod == "agent-of-node-2":
            return b"", b"expedited: no agent at /run/expedited/expedited.sock: start it\n", 1
        if pod == "agent-of-node-3":
            return b"Segmentation fault\n", b"", 139
        return _lines(_status())

    api.commands = run
    answer = kubectl("status")
    assert answer.returncode == 1
    assert "node-1" in answer.stdout
    assert answer.stderr.splitlines() == [
        "kubectl expedited: node node-2: no agent at /run/expedited/expedited.sock: start it",
        "kubectl expedited: node node-3: agent-of-node-3 gave an answer that is no JSON: is it another version?",
        "kubectl expedited: node node-4: agent-of-node-4 is Pending: see `kubectl -n expedited describe pod`",
    ]


def test_json_has_the_failed_nodes_beside_the_others(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1", "node-2")
    api.commands = lambda pod, argv: _lines(_status()) if pod.endswith("1") else (b"", b"expedited: broken\n", 1)
    answer = kubectl("status", "-o", "json")
    said = json.loads(answer.stdout)
    assert [item["node"] for item in said["items"]] == ["node-1"]
    assert said["items"][0]["gated"] == 6
    assert said["failed"] == [{"node": "node-2", "problem": "broken"}]
    assert answer.returncode == 1


def test_one_node_may_be_named(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1", "node-2")
    api.commands = lambda pod, argv: _lines(_status())
    said = json.loads(kubectl("status", "--node=node-2", "-o=json").stdout)
    assert [item["node"] for item in said["items"]] == ["node-2"]


def _container(name: str, anon_bytes: int, namespace: str = "shop") -> dict[str, Any]:
    return to_plain(
        pb.Container(
            id="0123456789abcdef",
            name=name,
            pod=pb.Pod(namespace=namespace, name="web"),
            memory=pb.Memory(anon_bytes=anon_bytes),
            policy=pb.Policy(mode="strike"),
            state="running",
            gated=True,
        )
    )


def test_top_has_the_largest_of_all_nodes_first(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1", "node-2")
    sizes = {"1": 5 << 20, "2": 9 << 20}
    api.commands = lambda pod, argv: _lines(
        {"containers": [_container(f"of-{pod[-1]}", sizes[pod[-1]]), _container("small", 1, "other")]}
    )
    rows = [line.split() for line in kubectl("top").stdout.splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["node-2", "shop/web/of-2"], ["node-1", "shop/web/of-1"]]
    assert len(rows) == 5
    assert len(kubectl("top", "-n", "shop").stdout.splitlines()) == 3


@pytest.fixture
def remembered(api: Any, make_stop: Callable[..., Any]) -> None:
    """Two nodes that remember stops of shop/web, and of pods with names that are like it."""
    _agents(api, "node-1", "node-2")
    stops = {
        "agent-of-node-1": [
            make_stop(pod="web", started_at=300.0, steps=(Step(0.0, "kill seen"), Step(0.002, "2 signalled"))),
            make_stop(pod="web-2", started_at=100.0),
        ],
        "agent-of-node-2": [
            make_stop(pod="web", container="sidecar", started_at=200.0, outcome=Outcome.DEADLINE, gone_seconds=None)
        ],
    }

    def run(pod: str, argv: list[str]) -> tuple[bytes, bytes, int]:
        prefix = argv[-1] if "--" in argv else ""
        told = [each for each in stops[pod] if f"shop/{each.pod_name}".startswith(prefix) or not prefix]
        told = told or [each for each in stops[pod] if each.pod_name.startswith(prefix)]
        return _lines(*(to_plain(stop_to_pb(each)) for each in told))

    api.commands = run


def test_stops_of_all_nodes_come_in_the_order_of_time(remembered: None, kubectl: Command) -> None:
    rows = [line.split() for line in kubectl("stops").stdout.splitlines()]
    assert [(row[1], row[2]) for row in rows[1:]] == [
        ("node-1", "shop/web-2/nginx"),
        ("node-2", "shop/web/sidecar"),
        ("node-1", "shop/web/nginx"),
    ]


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (["web-2"], [100.0]),
        (["shop/web"], [100.0, 200.0, 300.0]),
        (["--limit=1"], [300.0]),
        (["-n", "shop"], [100.0, 200.0, 300.0]),
        (["-n", "other"], []),
    ],
)
def test_stops_can_be_narrowed(remembered: None, kubectl: Command, arguments: list[str], started: list[float]) -> None:
    said = json.loads(kubectl("stops", "-o", "json", *arguments).stdout)
    assert [item["started_at"] for item in said["items"]] == started


def test_why_tells_the_story_of_a_pod_that_has_gone(remembered: None, kubectl: Command) -> None:
    answer = kubectl("why", "web")
    assert answer.returncode == 0, answer.stderr
    assert "web-2" not in answer.stdout
    stories = answer.stdout.split("shop/web ")[1:]
    assert len(stories) == 2
    assert "still there at the deadline" in stories[0]
    assert "held        1.0 GiB anonymous, 1 MiB of files, in 1 processes" in stories[1]
    assert "back        1.0 GiB, 0.250 s after the kill" in stories[1]
    assert "gate        the runtime went on after 2.0 ms" in stories[1]
    assert stories[1].splitlines()[-2:] == ["        0.0 ms  kill seen", "        2.0 ms  2 signalled"]


def test_why_asks_only_the_node_of_a_pod_that_is_there(api: Any, remembered: None, kubectl: Command) -> None:
    api.put_pod("web", "node-1")
    said = json.loads(kubectl("why", "shop/web", "-o", "json").stdout)
    assert [item["node"] for item in said["items"]] == ["node-1"]
    assert not api.asked("GET", "/api/v1/namespaces/expedited/pods/agent-of-node-2/exec")


def test_why_says_what_it_means_when_nobody_remembers(remembered: None, kubectl: Command) -> None:
    answer = kubectl("why", "other/absent")
    assert answer.returncode == 1
    assert answer.stderr.startswith(
        "kubectl expedited: no node remembers a stop of other/absent: none of its containers"
    )
    assert len(answer.stderr.splitlines()) == 1


def test_doctor_tells_once_what_many_nodes_lack(api: Any, kubectl: Command) -> None:
    _agents(api, *(f"node-{number}" for number in range(8)))

    def run(pod: str, argv: list[str]) -> tuple[bytes, bytes, int]:
        finding = {"area": "kernel", "name": "flags", "found": "stock", "costs": "races", "remedy": "patch [it] [/now]"}
        findings = [{**finding, "level": "degraded"}, {**finding, "name": "fine", "level": "ok"}]
        if pod.endswith("3"):
            findings.append({**finding, "name": "fanotify", "found": "missing", "level": "broken"})
        return _lines({"works": not pod.endswith("3"), "findings": findings})

    api.commands = run
    answer = kubectl("doctor")
    assert answer.returncode == 1
    lines = answer.stdout.splitlines()
    assert lines[0] == "broken: kernel: fanotify: missing"
    assert lines[1].split(maxsplit=1) == ["nodes", "node-3"]
    assert lines[4] == "degraded: kernel: flags: stock"
    assert lines[5].split(maxsplit=1) == ["nodes", "all 8"]
    assert lines[7].endswith("patch [it] [/now]")  # and no markup
    assert lines[-1] == "Kills can be caught and struck on 7 of 8 nodes."
    assert "fine" not in answer.stdout


def test_an_answer_of_many_frames_is_put_together(api: Any, kubectl: Command, make_stop: Callable[..., Any]) -> None:
    _agents(api, "node-1")
    api.commands = lambda pod, argv: _lines(
        *(to_plain(stop_to_pb(make_stop(pod=f"p{number}", started_at=float(number)))) for number in range(400))
    )
    said = json.loads(kubectl("stops", "-o", "json", "--limit=0").stdout)
    assert len(said["items"]) == 400


def _refused(kubectl: Command, *arguments: str) -> str:
    answer = kubectl(*arguments)
    assert answer.returncode != 0
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    return str(line)


def test_a_cluster_without_agents_is_one_line(api: Any, kubectl: Command) -> None:
    assert "no pod has the label app.kubernetes.io/name=expedited" in _refused(kubectl, "status")
    _agents(api, "node-1")
    assert "no agent on node node-9" in _refused(kubectl, "status", "--node", "node-9")


def test_an_api_server_that_is_away_is_one_line(api: Any, kubectl: Command) -> None:
    api.stop()
    assert f"no answer from https://127.0.0.1:{api.port}" in _refused(kubectl, "status")


def test_who_is_not_let_in_is_told_so_in_one_line(api: Any, kubectl: Command) -> None:
    assert "could not list the agents' pods: Unauthorized" in _refused(kubectl, "status", "--context", "nobody")


def test_a_context_or_a_kubeconfig_that_is_absent_or_damaged_is_one_line(kubectl: Command, tmp_path: Path) -> None:
    assert "no cluster: " in _refused(kubectl, "status", "--context", "absent")
    assert "no cluster: there is no file /absent" in _refused(kubectl, "status", "--kubeconfig", "/absent")
    for number, damaged in enumerate(("a: [", "[]", "contexts: 5\ncurrent-context: x")):
        path = tmp_path / f"damaged-{number}"
        path.write_text(damaged)
        assert f"no cluster: {path}: " in _refused(kubectl, "status", "--kubeconfig", str(path))


@pytest.mark.parametrize("pod", ["", "/", "a/", "/b", "a/b/c", "..", "a/..", "a?b", "\udcff"])
def test_what_is_no_pod_is_one_line(kubectl: Command, pod: str) -> None:
    assert f"{pod!r} is no pod: give NAME or NAMESPACE/NAME" in _refused(kubectl, "why", pod)


def test_an_exec_that_is_refused_is_one_line_for_that_node(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1", "node-2")
    api.commands = lambda pod, argv: _lines(_status())
    api.refusals = [("/api/v1/namespaces/expedited/pods/agent-of-node-1/exec", 403, {})]
    answer = kubectl("status")
    assert answer.returncode == 1
    assert "node-2" in answer.stdout
    (line,) = answer.stderr.splitlines()
    assert line.startswith("kubectl expedited: node node-1: could not ask agent-of-node-1: ")
    assert "403" in line


def test_a_node_that_hangs_is_not_waited_for_longer_than_was_said(api: Any, kubectl: Command) -> None:
    _agents(api, "node-1", "node-2")
    released = threading.Event()

    def run(pod: str, argv: list[str]) -> tuple[bytes, bytes, int]:
        if pod.endswith("1"):
            released.wait(60)
        return _lines(_status())

    api.commands = run
    answer = kubectl("status", "--timeout=10")
    released.set()
    assert answer.stderr == "kubectl expedited: node node-1: agent-of-node-1 did not answer within 10 s\n"
    assert "node-2" in answer.stdout


@pytest.mark.parametrize("words", [("stops", "--node"), ("status", "--outpu"), ("stops", "-o", "yaml")])
def test_wrong_words_end_in_one_line(kubectl: Command, words: tuple[str, ...]) -> None:
    answer = kubectl(*words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("kubectl expedited: ")
    assert answer.stderr.count("\n") == 1
    assert "--help`" in answer.stderr


def test_help_speaks_of_kubectl(kubectl: Command) -> None:
    assert "Usage: kubectl expedited" in kubectl("--help").stdout


def test_the_memory_of_a_container_that_was_not_measured_is_not_told(
    api: Any, kubectl: Command, make_stop: Callable[..., Any]
) -> None:
    _agents(api, "node-1")
    stop = make_stop(before=None, after=None, memory_back_seconds=None, processes=(), boosted=())
    api.commands = lambda pod, argv: _lines(to_plain(stop_to_pb(stop)))
    story = kubectl("why", "web").stdout
    assert "  held  " not in story
    assert "when is not known" in story

"""What the cases share: the cluster, and the record of what each came to."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

sys.path.insert(0, str(Path(__file__).parent))

from node import Node
from pods import Pods

KUBECONFIG = Path("/machine/root/.kube/config")
UNSEEN = "not seen"
RESULTS = Path(os.environ.get("EXPEDITED_E2E_RESULTS", "/share/e2e.json"))


@dataclass(frozen=True)
class Case:
    """One case on one kernel in one mode.

    Attributes:
        memory_back_s: From the end of the grace period (of a pod that obeys its SIGTERM: from the delete), or from kubelet's
            decision, until 95% of the anonymous memory was free; for an eviction, until the node's available memory was
            over the threshold.
        gone_s: From there until the pod had no process left.
        evicted_pods: How many other pods were evicted.
        kill_back_s: From the SIGKILL, or from when it was seen to end by itself, until the memory was back, as the agent has it.
        outcome: What the agent says it did.
        lost_races: How many processes let go of their memory before it could be reaped, as the agent has it.
        summary_back_s: Like ``memory_back_s``, by kubelet's own summary, which it renews every 10 s or so.
        hog_back_s: For an eviction: until 95% of the hog's anonymous memory was free.
        to_kill_s: For an eviction: until the runtime was told to send the SIGKILL, which is the same with and without the agent.
        cache_left_bytes: Page cache that the pod left charged to the cgroups above its own.
    """

    name: str
    kernel: str
    mode: str
    memory_back_s: float | None
    gone_s: float | None
    evicted_pods: int
    ok: bool
    kill_back_s: float | None = None
    outcome: str = ""
    lost_races: int = 0
    summary_back_s: float | None = None
    hog_back_s: float | None = None
    to_kill_s: float | None = None
    cache_left_bytes: int | None = None


class Record:
    """What the cases came to, written after each."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.kernel = "patched" if "expedited" in platform.release() else "stock"
        self._versions = versions
        self._cases: list[Case] = []
        self._failed: list[dict[str, str]] = []

    def add(
        self,
        name: str,
        mode: str,
        back: float | None,
        gone: float | None,
        stop: dict[str, Any] | None,
        evicted: int = 0,
        summary: float | None = None,
        hog: float | None = None,
        to_kill: float | None = None,
        cache_left: int | None = None,
        obeyed: bool = False,
    ) -> Case:
        """Add a case; it is ok if the memory came back, the pod went, and the agent saw it and did as it was told.

        Where its share of the CPU does not let it obey its SIGTERM within its grace, it is killed after all.
        """
        outcome = stop["outcome"] if stop else UNSEEN
        expected = {"observe": {"observed"}, "strike": {"struck"}}[mode]
        if obeyed:
            expected |= {"observe": {"watched"}, "strike": {"exited"}}[mode]
        ok = back is not None and gone is not None and outcome in expected
        killed = stop.get("memory_back_seconds") if stop else None
        lost = stop.get("lost_races", 0) if stop else 0
        case = Case(
            name=name,
            kernel=self.kernel,
            mode=mode,
            memory_back_s=_rounded(back),
            gone_s=_rounded(gone),
            evicted_pods=evicted,
            ok=ok,
            kill_back_s=_rounded(killed),
            outcome=outcome,
            lost_races=lost,
            summary_back_s=_rounded(summary),
            hog_back_s=_rounded(hog),
            to_kill_s=_rounded(to_kill),
            cache_left_bytes=cache_left,
        )
        self._write(case)
        return case

    def survived(self, name: str, outcome: str, ok: bool) -> None:
        """Add a case that is about what held while something was restarted, not about how long a stop took."""
        self._write(Case(name, self.kernel, "strike", None, None, 0, ok, outcome=outcome))

    def failed(self, test: str, why: str) -> None:
        """A test that failed: medians are of those that came to a result, and must not be all that is told."""
        self._failed.append({"test": test, "kernel": self.kernel, "why": why})
        self._save()

    def _write(self, case: Case) -> None:
        self._cases.append(case)
        self._save()

    def _save(self) -> None:
        document = {
            "cases": [asdict(each) for each in self._cases],
            "versions": self._versions,
            "failed": self._failed,
        }
        RESULTS.write_text(json.dumps(document, indent=1))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Who fails is on the record as well, whether or not it came to a result before."""
    outcome: Any = yield
    report = outcome.get_result()
    record = getattr(item, "funcargs", {}).get("record")
    if report.failed and record is not None and call.excinfo is not None:
        record.failed(
            item.nodeid.rpartition("::")[2], f"{call.when}: {call.excinfo.exconly()}".partition("\n")[0][:300]
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often: medians want more than one."""
    parser.addoption("--repeat", type=int, default=1, help="run each case so many times, the modes interleaved")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case as often as was asked for."""
    metafunc.fixturenames.append("run")
    metafunc.parametrize("run", range(metafunc.config.getoption("--repeat")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All cases once, then all of them again: what changes on the machine meanwhile changes for all."""
    items.sort(key=lambda item: item.callspec.params["run"])


@pytest.fixture(scope="session")
def api() -> client.CoreV1Api:
    """The cluster's API server."""
    config.load_kube_config(str(KUBECONFIG))
    return client.CoreV1Api()


@pytest.fixture(scope="session")
def node() -> Node:
    """The node's container."""
    return Node()


@pytest.fixture(scope="session")
def record(api: client.CoreV1Api, node: Node) -> Record:
    """Where the cases' results go."""
    info = api.list_node().items[0].status.node_info
    docker = subprocess.run(
        ["docker", "version", "-f", "{{.Server.Version}}"], check=True, capture_output=True, text=True
    )
    return Record(
        {
            "kernel": info.kernel_version,
            "kubelet": info.kubelet_version,
            "runtime": info.container_runtime_version,
            "docker": docker.stdout.strip(),
            "kind": subprocess.run(["kind", "version"], check=True, capture_output=True, text=True).stdout.split()[1],
        }
    )


@pytest.fixture
def pods(api: client.CoreV1Api) -> Iterator[Pods]:
    """Pods of one case."""
    mine = Pods(api)
    yield mine
    mine.clean_up()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

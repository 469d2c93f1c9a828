"""The agent where it holds nobody: it sees the runtime's own commands on a real containerd, and follows them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from expedited.demo.daemon import PrivateContainerd

MIB = 1 << 20


@pytest.fixture
def agent(containerd: PrivateContainerd, start_agent: Callable[..., Any]) -> Any:
    sockets = (f"--nri-socket={containerd.nri_socket}", f"--containerd-socket={containerd.socket}")
    one = start_agent("--source=observe", f"--state-root={containerd.state_root}", *sockets, ready=False)
    one.wait_told("the observer is up")
    one.wait_told("NRI: synchronized")
    one.wait_told(" answers")
    return one


_TRIES = 3


def followed(agent: Any, container_id: str) -> list[dict[str, Any]]:
    """What it has to say of this container's stop, if it says it within some seconds."""
    give_up_at = time.monotonic() + 5
    while not (found := agent.json("stops", container_id)) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    return list(found)


@pytest.mark.parametrize("grace", [0, 2])
@pytest.mark.parametrize("children", [0, 3])
def test_a_stop_by_the_runtime_is_followed_and_reported(
    containerd: PrivateContainerd, agent: Any, make_container: Callable[..., Any], grace: int, children: int
) -> None:
    complaints = r"level=(?:warning|error|fatal).*"
    for attempt in range(1, _TRIES + 1):
        hog = make_container("--bytes", "64M", "--ignore-term", "--children", str(children))
        agent.wait_known(hog.id)
        before = re.findall(complaints, containerd.log_path.read_text())
        containerd.cri.stop_container(hog.id, grace)
        assert containerd.cri.container(hog.id).exit_code == 137
        assert re.findall(complaints, containerd.log_path.read_text()) == before
        # It has the 15 ms between runc's execution and its signal: kept off the CPU for longer, it finds fewer or nobody
        if len(stops := followed(agent, hog.id)) == 1 and len(stops[0]["processes"]) == 1 + children:
            break
        assert attempt < _TRIES, stops

    (stop,) = stops
    assert (stop["trigger"], stop["outcome"], stop["order"]) == ("observer:kill", "struck", "follow")
    assert stop["pod"]["uid"] == hog.pod.uid
    assert stop["bytes_returned"] >= 0.9 * 64 * MIB  # the counters may lag
    assert stop["gone_seconds"] is not None
    assert stop["signalled_seconds"] is None
    print(stop["memory_back_seconds"], [process["fate"] for process in stop["processes"]])  # pytest -s
    # Who follows may be late, and then says so
    assert {process["fate"] for process in stop["processes"]} <= {"reaped", "lost_race", "gone", "killed"}


def test_a_stop_in_its_grace_is_shown_and_an_end_in_it_is_no_stop(
    containerd: PrivateContainerd, agent: Any, make_container: Callable[..., Any]
) -> None:
    # Too small for anybody to ask whether it is dying: else its end may be seen, and that makes a report (`exited`)
    hog = make_container("--bytes", "64K", "--term-delay-ms", "8000")
    ends = containerd.cri.begin_stop(hog.id, 30)

    def shown() -> bool:
        (top,) = agent.json("top")
        return any(each["id"] == hog.id and each.get("stopping_since") for each in top["containers"])

    agent.wait(shown, "its stop is not shown")
    ends.result()
    assert containerd.cri.container(hog.id).exit_code == 0  # the grace was its own
    assert agent.json("stops") == []


def test_status_says_that_nobody_is_held(agent: Any) -> None:
    (status,) = agent.json("status")
    assert (status["striker"], status["source"]) == ("ok", "proc-connector")
    assert "proc-connector: degraded" in agent.cli("status").stdout

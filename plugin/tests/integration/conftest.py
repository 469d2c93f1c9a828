"""A striker, and agents, beside the private containerd; pods with annotations of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expedited.demo.cri import Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from support.striker import StrikerProcess


@pytest.fixture
def striker(containerd: PrivateContainerd, run_dir: Path) -> Iterator[StrikerProcess]:
    """A striker over the private containerd, with the default policy."""
    one = StrikerProcess(run_dir, f"--state-root={containerd.state_root}")
    yield one
    one.close()


@pytest.fixture
def start(containerd: PrivateContainerd, start_agent: Callable[..., Any]) -> Callable[..., Any]:
    """``start(*flags) -> AgentProcess`` on the private containerd, connected to all of it."""

    def start(*flags: str, nri: bool = True, api: bool = True, ready: bool = True, **options: Any) -> Any:
        sockets = [f"--nri-socket={containerd.nri_socket}"] if nri else []
        sockets += [f"--containerd-socket={containerd.socket}"] if api else []
        agent = start_agent(f"--state-root={containerd.state_root}", *sockets, *flags, ready=ready, **options)
        if ready and nri:
            agent.wait_told("NRI: synchronized")
        if ready and api:
            agent.wait_told(" answers")
        return agent

    return start


@pytest.fixture
def annotated(make_pod: Callable[..., Pod]) -> Callable[..., Pod]:
    """``annotated(mode="observe", page_cache="drop") -> Pod``, with these annotations of ours and one of somebody else."""

    def annotated(**annotations: str) -> Pod:
        named = {f"expedited.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
        return make_pod(PodSpec(annotations={**named, "other.io/mode": "off"}))

    return annotated

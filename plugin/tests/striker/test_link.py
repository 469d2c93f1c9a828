"""The striker's socket: who may use it, and that nothing sent to it disturbs anybody else."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expedited.striker.link import StrikerLink, StrikerUnreachable, Unreadable
from expedited.striker.status import StrikerStatus


def raw(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(30)
    connection.connect(path)
    return connection


MALFORMED = [
    b"{",
    b"[1]",
    b'"do"',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"do": "policy"' + b" " * 180_000 + b"}",
    b'{"seq": 1}',
    b'{"do": "nope"}',
    b'{"do": "__class__"}',
    b'{"do": ["policy"]}',
    b'{"do": "policy", "default": {"mode": "maim"}}',
    b'{"do": "policy", "default": {"min_size_bytes": "1M"}}',
    b'{"do": "policy", "default": []}',
    b'{"do": "policy", "containers": [1]}',
    b'{"do": "policy", "containers": {"c1": {"deadline_seconds": null}}}',
    b'{"do": "forget"}',
    b'{"do": "leaving", "ids": [[]]}',
    b'{"do": "leaving", "ids": 5}',
    b'{"do": "watch", "id": 5}',
    b'{"do": "strike"}',
    b'{"do": "strike", "id": "no-such-container"}',
    b'{"do": "strike", "id": "../c1"}',
    b'{"do": "strike", "cgroup": "/"}',
    b'{"do": "strike", "cgroup": "/\\u0000"}',
    b'{"do": "strike", "cgroup": "relative"}',
    b'{"do": "strike", "cgroup": "/no/such/cgroup"}',
    b'{"do": "strike", "cgroup": 5}',
    b'{"do": "strike", "cgroup": "/etc", "policy": 5}',
]


def test_what_is_malformed_is_refused_and_disturbs_nobody(striker: Any) -> None:
    before = striker.status()
    with raw(striker.socket) as connection:
        for packet in MALFORMED:
            connection.send(packet)
            answer = json.loads(connection.recv(160_000))
            assert answer["is"] == "refused", packet[:80]
            assert answer["code"] in (1, 2)
            assert "\n" not in answer["why"]
            assert striker.link.ask("status")["restarts"] == 0
    after = striker.status()
    assert (after["pid"], after["stops"]) == (before["pid"], 0)
    assert striker.log == ""


def test_a_refusal_repeats_the_requests_number(striker: Any) -> None:
    answer = striker.link.ask("policy", default={"mode": "maim"})
    assert answer["is"] == "refused"


def test_a_policy_that_was_refused_changes_nothing(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    striker.link.ask("policy", default={"min_size_bytes": "huge"})
    node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9")
    assert striker.report_of("c1").outcome == "struck"


def test_only_root_and_its_own_user_are_let_in(striker: Any) -> None:
    os.chmod(striker.run_dir, 0o755)  # noqa: PTH101
    Path(striker.socket).chmod(0o666)  # as nobody should; the credentials hold all the same
    code = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
        'try: s.send(b\'{"do":"status"}\')\n'
        "except BrokenPipeError: pass\n"
        "try: print(len(s.recv(4096)))\n"
        "except ConnectionResetError: print(0)"
    )
    answer = subprocess.run([sys.executable, "-c", code, striker.socket], capture_output=True, text=True, check=True)
    assert answer.stdout == "0\n"
    assert "user 65534 was turned away" in striker.log
    assert striker.status()["is"] == "status"


def test_the_socket_is_for_its_owner_only(striker: Any) -> None:
    assert Path(striker.socket).stat().st_mode & 0o777 == 0o600


def test_more_clients_than_select_could_count(striker: Any) -> None:
    """A strike of a thousand processes holds as many descriptors; whoever connects then gets a number above 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096) if hard < 0 else min(hard, max(soft, 4096)), hard))
    links: list[StrikerLink] = []
    try:
        links = [StrikerLink.connect(striker.socket) for _ in range(1100)]
        assert links[-1].ask("status")["is"] == "status"
        assert links[0].ask("status")["is"] == "status"
    finally:
        for link in links:
            link.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert striker.status()["is"] == "status"


def test_a_client_that_does_not_read_is_dropped_and_the_rest_is_served(striker: Any) -> None:
    with raw(striker.socket) as deaf:
        deaf.setblocking(False)
        with pytest.raises((BlockingIOError, BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            for _ in range(100_000):
                deaf.send(b'{"do": "status"}')
                if striker.link.ask("status")["is"] != "status":
                    break
    assert striker.status()["is"] == "status"


def test_a_strike_by_cgroup_and_by_id(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    one, two = scratch_cgroup.child("one"), scratch_cgroup.child("two")
    first = node.container("c1", one, "--bytes", "8M", "--children", "1")
    second = node.container("c2", two, "--bytes", "8M")
    striker.wait_gated("c1", "c2")
    answer = striker.link.ask("strike", id="c1", trigger="test", timeout_seconds=30)
    assert (answer["is"], answer["report"]["outcome"], answer["report"]["trigger"]) == ("report", "struck", "test")
    with StrikerLink.connect(striker.socket) as link:
        answer = link.ask("strike", cgroup=two.path, policy={"boost": False}, timeout_seconds=30)
    assert (answer["report"]["outcome"], answer["report"]["boosted"]) == ("struck", [])
    assert (first.wait(), second.wait()) == (-9, -9)


def test_a_crun_container_whose_init_has_exited_is_not_mistaken_for_another(
    node: Any, striker: Any, scratch_cgroup: Any, alive: Any
) -> None:
    """crun does not say which cgroup, and init's number may be somebody else's."""
    bystander = node.container("c1", scratch_cgroup, "--bytes", "8M")
    start = int(Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()[19])
    node.state("c2", {"pid": bystander.pid, "process-start-time": start - 100}, name="status")
    striker.wait_gated("c2")
    answer = striker.link.ask("strike", id="c2")
    assert answer["is"] == "refused"
    assert alive(bystander.pid)


def test_reports_are_handed_out_in_order(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    striker.policy(min_size_bytes=0)
    names = [f"c{number}" for number in range(20)]
    for name in names:
        node.container(name, scratch_cgroup.child(name), "--bytes", "1M")
    striker.wait_gated(*names)
    for name in names:
        node.run("kill", name, "9")
        striker.report_of(name)
    seen: list[int] = []
    with StrikerLink.connect(striker.socket) as link:
        while True:
            answer = link.ask("reports", after=seen[-1] if seen else 0)
            seen += [report["number"] for report in answer["reports"]]
            if not answer["more"]:
                break
    assert seen == list(range(1, 21))


def test_a_second_striker_is_told_so(striker: Any) -> None:
    command = [sys.executable, "-m", "expedited.striker", f"--run-dir={striker.run_dir}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "listens there already" in answer.stderr


@pytest.fixture
def ends() -> Iterator[tuple[StrikerLink, socket.socket]]:
    """A link, and the striker's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with StrikerLink(ours) as link, theirs:
        yield link, theirs


@pytest.mark.parametrize("packet", [b'{"is": "status", "gated": ["c1", "c', b"\xff\xfe", b"[1]", b"null"])
def test_a_packet_that_cannot_be_read_is_a_lost_link(ends: tuple[StrikerLink, socket.socket], packet: bytes) -> None:
    link, striker = ends
    striker.send(packet)
    with pytest.raises(Unreadable, match=f"a packet of {len(packet)} bytes that can't be read"):
        link.receive(30)


def test_an_older_striker_names_all_of_its_containers_in_one_packet(ends: tuple[StrikerLink, socket.socket]) -> None:
    link, striker = ends
    names = [f"{number:064x}" for number in range(2500)]
    striker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    striker.send(json.dumps({"is": "status", "seq": 1, "version": "0.0.1", "gated": names}).encode())
    message = link.receive(30)
    assert message is not None
    status = StrikerStatus.from_json(message)
    assert (status.gated, status.gated_count) == (tuple(names), len(names))


def test_a_striker_that_never_reads_is_given_up_in_the_end(ends: tuple[StrikerLink, socket.socket]) -> None:
    link, _ = ends
    link._socket.setblocking(False)
    with pytest.raises(StrikerUnreachable, match="has not read for"):  # noqa: PT012
        for number in range(1000):
            assert link.send("policy", containers={"c1": "x" * 100_000}) == number + 1
            assert link.unsent or number < 100


def test_a_link_to_nobody() -> None:
    with pytest.raises(StrikerUnreachable, match="no striker at /nowhere"):
        StrikerLink.connect("/nowhere")

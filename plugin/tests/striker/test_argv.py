"""Only a runtime's `kill` or `delete --force` is a kill; whatever else a command line may be, it is let through."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expedited.striker.argv import Command, Verb, parse, root_of


def cmdline(*words: str) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)


CONTAINERD = ("runc", "--root", "/run/containerd/runc/k8s.io", "--log", "/b/log.json", "--log-format", "json")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((*CONTAINERD, "kill", "c1", "9"), Command(Verb.KILL, "c1", 9, False)),
        ((*CONTAINERD, "kill", "c1", "15"), Command(Verb.KILL, "c1", 15, False)),
        ((*CONTAINERD, "kill", "--all", "c1", "9"), Command(Verb.KILL, "c1", 9, False)),
        ((*CONTAINERD, "--systemd-cgroup", "kill", "c1", "KILL"), Command(Verb.KILL, "c1", 9, False)),
        ((*CONTAINERD, "delete", "--force", "c1"), Command(Verb.DELETE, "c1", 9, False)),
        ((*CONTAINERD, "delete", "-f", "c1"), Command(Verb.DELETE, "c1", 9, False)),
        ((*CONTAINERD, "delete", "c1", "-f"), Command(Verb.DELETE, "c1", 9, False)),
        (("runc", "kill", "c1"), Command(Verb.KILL, "c1", 15, False)),
        (("/usr/bin/crun", "--root=/run/crun", "kill", "c1", "SIGKILL"), Command(Verb.KILL, "c1", 9, False)),
        (("crun", "kill", "--regex", "c.*", "9"), Command(Verb.KILL, "c.*", 9, True)),
        (("youki", "-r", "/run/youki", "kill", "c1", "sigkill"), Command(Verb.KILL, "c1", 9, False)),
        (("runc", "kill", "kill", "kill"), Command(Verb.KILL, "kill", 9, False)),
        ((*CONTAINERD, "delete", "c1"), None),
        ((*CONTAINERD, "delete", "--force=false", "c1"), None),
        ((*CONTAINERD, "start", "c1"), None),
        ((*CONTAINERD, "state", "kill"), None),
        ((*CONTAINERD, "exec", "c1", "kill", "9"), None),
        ((*CONTAINERD, "create", "--bundle", "kill", "c1"), None),
        (("runc", "--root", "kill", "state", "c1"), None),
        (("runc", "kill", "c1", "0"), None),
        (("runc", "kill", "c1", "NOSUCH"), None),
        (("runc", "kill", "c1", "_DFL"), None),
        (("runc", "kill", "c1", "999"), None),
        (("runc", "kill", "c1", "9", "more"), None),
        (("runc", "kill"), None),
        (("vim", "state.json"), None),
        (("sh", "-c", "runc kill c1 9"), None),
        (("python3", "runc", "kill", "c1", "9"), None),
        (("",), None),
    ],
)
def test_command_lines(words: tuple[str, ...], wanted: Command | None) -> None:
    assert parse(cmdline(*words)) == wanted


WORDS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=12)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", fullmatch=True)
GLOBAL_FLAGS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["--root", "--log", "--log-format", "--criu", "--rootless"]), WORDS),
        st.tuples(st.sampled_from(["--debug", "--systemd-cgroup", "--root=/x", "--log=/kill"])),
    ),
    max_size=5,
).map(lambda groups: [word for group in groups for word in group])
SIGNALS = st.sampled_from([("9", 9), ("KILL", 9), ("SIGKILL", 9), ("kill", 9), ("15", 15), ("TERM", 15), ("10", 10)])


@given(GLOBAL_FLAGS, st.lists(st.sampled_from(["--all", "-a"]), max_size=2), IDS, SIGNALS, st.randoms())
def test_a_kill_is_seen_wherever_its_flags_stand(
    before: list[str], flags: list[str], container_id: str, sent: tuple[str, int], random: object
) -> None:
    word, number = sent
    after = [container_id, word]
    for flag in flags:
        after.insert(random.randint(0, len(after)), flag)  # type: ignore[attr-defined]
    assert parse(cmdline("runc", *before, "kill", *after)) == Command(Verb.KILL, container_id, number, False)


@given(GLOBAL_FLAGS, IDS, st.sampled_from(["-f", "--force"]), st.booleans())
def test_a_forced_delete_is_seen_and_a_plain_one_is_not(
    before: list[str], container_id: str, flag: str, first: bool
) -> None:
    operands = [flag, container_id] if first else [container_id, flag]
    forced = parse(cmdline("runc", *before, "delete", *operands))
    assert forced == Command(Verb.DELETE, container_id, signal.SIGKILL, False)
    assert parse(cmdline("runc", *before, "delete", container_id)) is None


@given(GLOBAL_FLAGS, st.sampled_from(["create", "start", "exec", "state", "ps", "pause", "resume"]), st.lists(WORDS))
def test_no_other_subcommand_is_ever_a_kill(before: list[str], verb: str, rest: list[str]) -> None:
    assert parse(cmdline("runc", *before, verb, *rest, "kill", "c1", "9")) is None


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_read_without_a_word(cmdline: bytes) -> None:
    command = parse(cmdline)
    assert command is None or 0 < command.signal < signal.NSIG


@given(st.lists(st.one_of(WORDS, st.sampled_from(["kill", "delete", "-f", "--force", "9", "--root", "-"])), max_size=8))
def test_words_in_any_order_give_a_whole_command_or_none(words: list[str]) -> None:
    command = parse(cmdline(*words))
    if command is not None:
        assert command.verb.value in words[1:]
        assert command.container_id in words
        assert not command.container_id.startswith("-")
        assert command.verb is Verb.KILL or {"-f", "--force"} & set(words)


def test_a_command_ends_only_the_container_it_names() -> None:
    assert Command(Verb.KILL, "c1", 9, False).ends("c1")
    assert not Command(Verb.KILL, "c1", 9, False).ends("c10")
    assert Command(Verb.KILL, "c.*", 9, True).ends("c10")


@pytest.mark.parametrize(
    ("words", "root"),
    [
        (
            ("/usr/bin/runc", "--root", "/run/docker/runtime-runc/moby", "--log", "/l", "kill", "c1"),
            "/run/docker/runtime-runc/moby",
        ),
        (("runc", "--log=/l", "--root=/x", "kill", "c1"), "/x"),
        (("crun", "-r", "/y", "kill", "c1"), "/y"),
        (("/usr/bin/crun", "kill", "c1", "9"), "/run/crun"),
        (("runc", "--debug", "kill", "c1"), "/run/runc"),
    ],
)
def test_where_a_runtime_keeps_its_containers(words: tuple[str, ...], root: str) -> None:
    assert root_of(cmdline(*words)) == root

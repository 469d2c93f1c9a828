from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expedited.inventory import Change, Inventory, NotFoundError, Sighting, Source, State
from expedited.settings import AgentSettings
from expedited.teardown.policy import Mode, Policy

NODE = Policy(mode=Mode.STRIKE)
SYSTEM = Policy(mode=Mode.OBSERVE)
SETTINGS = AgentSettings(policy=NODE, namespaces={"kube-system": SYSTEM})

POD = {"pod_uid": "u1", "pod_namespace": "web", "pod_name": "shop-1", "sandbox_id": "s1", "runtime_namespace": "k8s.io"}
SANDBOX = Sighting("s1", sandbox=True, **POD)
MAIN = Sighting("c1", name="main", sandbox=False, pid=10, state=State.RUNNING, **POD)
SIDE = Sighting("c2", name="side", sandbox=False, pid=11, state=State.RUNNING, **POD)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Recorder(list[Change]):
    """What the striker was told."""

    @property
    def policies(self) -> dict[str, Mode]:
        return {name: policy.mode for change in self for name, policy in change.policies.items()}

    @property
    def gone(self) -> list[str]:
        return [name for change in self for name in change.gone]


@pytest.fixture
def told() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inventory(told: Recorder, clock: Clock) -> Inventory:
    return Inventory(SETTINGS, told.append, clock)


def annotated(sighting: Sighting, **annotations: str) -> Sighting:
    named = {f"expedited.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return replace(sighting, annotations={**named, "other.io/x": "y"})


# --- policy


def test_a_container_without_a_word_has_the_nodes_policy_and_the_striker_need_not_be_told(
    inventory: Inventory, told: Recorder
) -> None:
    inventory.saw(Source.NRI, MAIN)

    assert inventory.find("c1").policy == NODE
    assert told == []
    assert inventory.policies() == {}


def test_a_namespaces_default_is_before_the_nodes_and_an_annotation_before_both(
    inventory: Inventory, told: Recorder
) -> None:
    there = replace(MAIN, pod_namespace="kube-system")
    inventory.saw(Source.NRI, there)
    assert inventory.find("c1").policy == SYSTEM

    inventory.saw(Source.NRI, annotated(there, mode="compare"))
    assert inventory.find("c1").policy.mode is Mode.COMPARE
    assert [change.policies["c1"].mode for change in told] == [Mode.OBSERVE, Mode.COMPARE]
    assert inventory.policies() == {"c1": replace(SYSTEM, mode=Mode.COMPARE)}


def test_a_pods_annotations_hold_for_its_containers_whichever_came_first(inventory: Inventory, told: Recorder) -> None:
    inventory.saw(Source.CONTAINERD, MAIN)
    inventory.saw(Source.CONTAINERD, annotated(SANDBOX, mode="observe"))
    inventory.saw(Source.CONTAINERD, SIDE)

    assert told.policies == dict.fromkeys(["c1", "s1", "c2"], Mode.OBSERVE)
    assert dict(inventory.find("c2").seen.annotations or {}) == {"expedited.io/mode": "observe"}


def test_a_containers_own_annotation_is_for_it_alone(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, MAIN, SIDE, replace(SANDBOX, annotations={"expedited.io/mode.side": "off"}))

    assert {one.id: one.policy.mode for one in inventory} == {"c1": NODE.mode, "s1": NODE.mode, "c2": Mode.OFF}


def test_an_annotation_that_was_taken_away_gives_the_default_back_and_the_striker_is_told(
    inventory: Inventory, told: Recorder
) -> None:
    inventory.saw(Source.NRI, annotated(MAIN, mode="off"))
    inventory.saw(Source.NRI, annotated(MAIN))

    assert [change.policies for change in told] == [{"c1": replace(NODE, mode=Mode.OFF)}, {"c1": NODE}]


def test_what_a_pod_is_annotated_with_now_goes_before_what_its_sandbox_was_made_with(
    inventory: Inventory, told: Recorder
) -> None:
    inventory.saw(Source.NRI, annotated(SANDBOX, mode="observe"), MAIN)
    inventory.annotate("u1", {"expedited.io/mode": "off", "other": "word"})
    assert told.policies == {"s1": Mode.OFF, "c1": Mode.OFF}
    inventory.saw(Source.CONTAINERD, annotated(SANDBOX, mode="observe"))
    inventory.saw(Source.NRI, SIDE)
    assert {known.id: known.policy.mode for known in inventory} == dict.fromkeys(("s1", "c1", "c2"), Mode.OFF)
    inventory.annotate("u1", {})  # taken away
    assert {known.id: known.policy.mode for known in inventory} == dict.fromkeys(("s1", "c1", "c2"), Mode.STRIKE)
    inventory.annotate("u2", {"expedited.io/mode": "off"})  # of a pod whose containers are not known yet
    other = {**POD, "pod_uid": "u2", "sandbox_id": "s2"}
    inventory.saw(Source.NRI, Sighting("c3", **other))
    assert inventory.find("c3").policy.mode is Mode.OFF


def test_a_pod_that_is_not_there_any_more_leaves_no_annotations(inventory: Inventory) -> None:
    inventory.annotate("u1", {"expedited.io/mode": "off"})
    inventory.annotate("u1", None)
    inventory.annotate("u1", None)
    inventory.saw(Source.NRI, MAIN)
    assert inventory.find("c1").policy.mode is Mode.STRIKE


def test_a_pod_that_was_deleted_by_force_is_what_it_was_last_said_to_be(inventory: Inventory, told: Recorder) -> None:
    inventory.saw(Source.NRI, SANDBOX, MAIN)
    inventory.annotate("u1", {"expedited.io/mode": "off"})
    inventory.annotate("u1", None)
    inventory.saw(Source.NRI, annotated(SANDBOX, mode="observe"))
    assert {known.policy.mode for known in inventory} == {Mode.OFF}
    inventory.forget("c1", "s1")
    inventory.saw(Source.NRI, annotated(SANDBOX, mode="observe"))  # nobody remembers
    assert inventory.find("s1").policy.mode is Mode.OBSERVE


def test_a_malformed_word_on_a_running_pod_leaves_it_alone(inventory: Inventory, told: Recorder) -> None:
    inventory.saw(Source.NRI, SANDBOX, MAIN)
    inventory.annotate("u1", {"expedited.io/mode": "sometimes"})
    assert told.policies == {"s1": Mode.OFF, "c1": Mode.OFF}
    assert [line for change in told for line in change.problems]


def test_a_source_that_does_not_know_the_annotations_does_not_take_them_away(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, annotated(MAIN, mode="off"))
    inventory.saw(Source.STRIKER, Sighting("c1"))
    inventory.saw(Source.CONTAINERD, MAIN)

    assert inventory.find("c1").policy.mode is Mode.OFF


def test_a_pod_learnt_of_late_brings_its_annotations(inventory: Inventory, told: Recorder) -> None:
    inventory.saw(Source.STRIKER, Sighting("c1"))
    inventory.saw(Source.NRI, annotated(SANDBOX, mode="observe"))
    inventory.saw(Source.NRI, MAIN)

    assert told.policies == {"s1": Mode.OBSERVE, "c1": Mode.OBSERVE}


def test_a_malformed_annotation_leaves_its_pod_alone_and_is_told_once(inventory: Inventory, told: Recorder) -> None:
    broken = annotated(SANDBOX, mode="strik")
    inventory.saw(Source.NRI, broken, MAIN)
    inventory.saw(Source.NRI, broken, MAIN)
    inventory.saw(Source.NRI, Sighting("c9", pod_uid="u9", pod_namespace="web", pod_name="other"))

    assert [one.policy.mode for one in inventory] == [Mode.OFF, Mode.OFF, NODE.mode]
    problem = (
        "pod web/shop-1 is left alone: annotation expedited.io/mode takes strike, observe, compare or off,"
        " not 'strik'; did you mean strike?"
    )
    assert [change.problems for change in told] == [(problem,)]
    assert inventory.find("c1").problems == (problem,)


def test_a_container_outside_of_any_pod_has_its_own_annotations(inventory: Inventory) -> None:
    inventory.saw(Source.CONTAINERD, annotated(Sighting("by-ctr", runtime_namespace="default"), mode="off"))

    one = inventory.find("by-ctr")
    assert (one.policy.mode, one.pod, one.label) == (Mode.OFF, "", "by-ctr")


# --- what the sources say together


def test_what_the_sources_know_comes_together(inventory: Inventory) -> None:
    inventory.saw(Source.STRIKER, Sighting("c1"))
    inventory.saw(Source.CONTAINERD, replace(MAIN, pid=0, state=State.UNKNOWN))
    inventory.saw(Source.NRI, Sighting("c1", pid=10, state=State.CREATED))

    one = inventory.find("c1")
    assert one.seen == replace(MAIN, state=State.CREATED, annotations={})
    assert (one.gated, one.sandbox, one.pod, one.label) == (True, False, "web/shop-1", "web/shop-1/main")


def test_a_container_that_exited_has_no_process_until_it_starts_again(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, replace(MAIN, pid=os.getpid()))
    assert inventory.find("c1").find_cgroup() is not None
    inventory.exited(Source.CONTAINERD, "c1")
    stopped = inventory.find("c1")
    assert (stopped.seen.state, stopped.seen.pid, stopped.find_cgroup()) == (State.STOPPED, 0, None)

    inventory.saw(Source.CONTAINERD, Sighting("c1", pid=20, state=State.RUNNING))
    assert (inventory.find("c1").seen.state, inventory.find("c1").seen.pid) == (State.RUNNING, 20)


def test_an_exit_of_nobody_makes_nobody(inventory: Inventory) -> None:
    inventory.exited(Source.CONTAINERD, "c1")

    assert len(inventory) == 0


def test_a_list_from_before_an_exit_does_not_bring_the_process_back(inventory: Inventory, clock: Clock) -> None:
    here = replace(MAIN, pid=os.getpid())
    inventory.saw(Source.CONTAINERD, here)
    asked_at = clock()
    inventory.exited(Source.CONTAINERD, "c1")
    inventory.reconcile(Source.CONTAINERD, [here], at=asked_at)

    known = inventory.find("c1")
    assert (known.seen.state, known.seen.pid, known.find_cgroup()) == (State.STOPPED, 0, None)


def test_a_list_from_before_a_removal_does_not_bring_the_container_back(inventory: Inventory, clock: Clock) -> None:
    inventory.saw(Source.NRI, MAIN)
    asked_at = clock()
    inventory.forget("c1")
    inventory.reconcile(Source.CONTAINERD, [MAIN, SIDE], at=asked_at)

    assert [one.id for one in inventory] == ["c2"]


def test_an_id_may_be_used_again_after_a_removal(inventory: Inventory) -> None:
    inventory.saw(Source.CONTAINERD, annotated(Sighting("by-ctr"), mode="off"))
    inventory.forget("by-ctr")
    inventory.saw(Source.CONTAINERD, Sighting("by-ctr"))

    assert inventory.find("by-ctr").policy == NODE


# --- who goes


def test_what_was_removed_is_told_once(inventory: Inventory, told: Recorder) -> None:
    inventory.saw(Source.NRI, MAIN)
    inventory.forget("c1", "unknown")
    inventory.forget("c1")

    assert told == [Change({}, ("c1",))]
    assert inventory.get("c1") is None


def test_reconciling_lets_go_of_what_is_listed_no_more(inventory: Inventory, told: Recorder, clock: Clock) -> None:
    inventory.saw(Source.CONTAINERD, SANDBOX, MAIN, SIDE)
    inventory.reconcile(Source.CONTAINERD, [SANDBOX, SIDE], at=clock())

    assert {one.id for one in inventory} == {"s1", "c2"}
    assert told.gone == ["c1"]


def test_reconciling_keeps_what_came_after_the_list_was_asked_for(inventory: Inventory, clock: Clock) -> None:
    asked_at = clock()
    inventory.saw(Source.NRI, MAIN)
    inventory.saw(Source.CONTAINERD, SIDE)
    inventory.reconcile(Source.CONTAINERD, [], at=asked_at)

    assert {one.id for one in inventory} == {"c1", "c2"}


def test_reconciling_one_namespace_leaves_the_others(inventory: Inventory, clock: Clock) -> None:
    inventory.saw(Source.CONTAINERD, MAIN, Sighting("by-ctr", runtime_namespace="default"))
    inventory.reconcile(Source.CONTAINERD, [], at=clock(), runtime_namespace="default")

    assert [one.id for one in inventory] == ["c1"]


def test_who_is_lost_to_one_source_stays_for_another_but_not_if_containerd_lost_it(
    inventory: Inventory, told: Recorder, clock: Clock
) -> None:
    inventory.saw(Source.CONTAINERD, MAIN)
    inventory.saw(Source.NRI, MAIN)
    inventory.saw(Source.STRIKER, MAIN)
    assert inventory.find("c1").gated

    inventory.reconcile(Source.STRIKER, [], at=clock())
    inventory.reconcile(Source.STRIKER, [], at=clock())
    assert not inventory.find("c1").gated

    inventory.reconcile(Source.CONTAINERD, [], at=clock())
    assert inventory.get("c1") is None
    assert told.gone == ["c1"]


def test_who_is_lost_to_its_only_source_goes(inventory: Inventory, clock: Clock) -> None:
    inventory.saw(Source.NRI, MAIN)
    inventory.reconcile(Source.CONTAINERD, [], at=clock())
    assert inventory.get("c1")

    inventory.reconcile(Source.NRI, [], at=clock())
    assert inventory.get("c1") is None


def test_the_annotations_of_a_pod_go_with_its_last_container(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, annotated(SANDBOX, mode="off"), MAIN)
    inventory.forget("s1")
    assert inventory.find("c1").policy.mode is Mode.OFF
    inventory.forget("c1")
    inventory.saw(Source.NRI, replace(MAIN, id="c3"))

    assert inventory.find("c3").policy == NODE


# --- how they are named


def test_a_container_is_found_by_its_id_or_by_enough_of_it(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, Sighting("abc"), Sighting("abcdef"), Sighting("xyz"))

    assert inventory.find("abc").id == "abc"
    assert inventory.find("abcd").id == "abcdef"
    assert inventory.find("x").id == "xyz"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("q", r"^no container's id begins with 'q': "),
        ("", r"^no container's id begins with '': "),
        ("ab", r"^2 containers' ids begin with 'ab' \(abc, abcdef\): give more of the id$"),
    ],
)
def test_a_wrong_prefix_is_a_usage_error_of_one_line(inventory: Inventory, prefix: str, said: str) -> None:
    inventory.saw(Source.NRI, Sighting("abc"), Sighting("abcdef"))

    with pytest.raises(NotFoundError, match=said) as caught:
        inventory.find(prefix)
    assert caught.value.exit_code == 2


def test_a_pod_is_found_by_its_uid_or_name_and_its_sandbox_comes_last(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, SANDBOX, SIDE, MAIN, Sighting("lone"))

    assert [one.id for one in inventory.by_pod("u1")] == ["c1", "c2", "s1"]
    assert inventory.by_pod("web/shop-1") == inventory.by_pod("u1")


@pytest.mark.parametrize("pod", ["", "nothing", "web/other", "/"])
def test_a_pod_that_is_not_here_is_a_usage_error(inventory: Inventory, pod: str) -> None:
    inventory.saw(Source.NRI, MAIN, Sighting("lone"))

    with pytest.raises(NotFoundError, match=r"^no pod "):
        inventory.by_pod(pod)


def test_two_pods_of_one_name_have_to_be_told_apart(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, MAIN, replace(MAIN, id="c9", pod_uid="u2"))

    with pytest.raises(NotFoundError, match=r"^2 pods are called 'web/shop-1': name one by its uid \(u1, u2\)$"):
        inventory.by_pod("web/shop-1")


# --- where they are


def test_the_cgroup_is_found_from_the_init_process(inventory: Inventory) -> None:
    inventory.saw(Source.NRI, replace(MAIN, pid=os.getpid()))
    inventory.saw(Source.NRI, replace(SIDE, pid=0))

    cgroup = inventory.find("c1").find_cgroup()
    assert cgroup is not None
    assert os.getpid() in cgroup.pids()
    assert inventory.find("c2").find_cgroup() is None


def test_the_cgroup_of_no_process_and_of_one_that_is_not_there_is_none(inventory: Inventory) -> None:
    inventory.saw(Source.STRIKER, Sighting("c1"))
    inventory.saw(Source.NRI, Sighting("c2", pid=2**22 + 1))

    assert inventory.find("c1").find_cgroup() is None
    assert inventory.find("c2").find_cgroup() is None


# --- any order of words

IDS = st.sampled_from(["c1", "c2", "s1"])
SIGHTINGS = {"c1": MAIN, "c2": SIDE, "s1": annotated(SANDBOX, mode="observe")}
WORDS = st.one_of(
    st.tuples(st.just("saw"), st.sampled_from(Source), st.sets(IDS)),
    st.tuples(st.just("reconcile"), st.sampled_from(Source), st.sets(IDS)),
    st.tuples(st.just("forget"), st.just(None), st.sets(IDS, min_size=1)),
    st.tuples(st.just("exited"), st.sampled_from(Source), st.sets(IDS, max_size=1)),
)


@given(st.lists(WORDS, max_size=30))
def test_in_whatever_order_they_speak_the_striker_knows_what_the_inventory_knows(
    words: list[tuple[str, Source | None, set[str]]],
) -> None:
    striker: dict[str, Policy] = {}

    def take(change: Change) -> None:
        for name in change.gone:
            striker.pop(name, None)
        striker.update(change.policies)

    clock = Clock()
    inventory = Inventory(SETTINGS, take, clock)
    for verb, source, ids in words:
        if verb == "forget" or source is None:
            inventory.forget(*ids)
        elif verb == "saw":
            inventory.saw(source, *(SIGHTINGS[name] for name in ids))
        elif verb == "exited":
            for name in ids:
                inventory.exited(source, name)
        else:
            inventory.reconcile(source, [SIGHTINGS[name] for name in ids], at=clock())
        assert {name: policy for name, policy in striker.items() if policy != NODE} == inventory.policies()
        assert set(striker) <= {one.id for one in inventory}
    inventory.forget("c1", "c2", "s1")
    assert len(inventory) == 0
    assert striker == {}
    assert not inventory._members
    assert not inventory._annotations

"""The containers of this node: who they are, where they are, and which policy holds for each.

Three sources tell: the runtime's NRI events, containerd's API, and the striker's own list of what it gates. Each knows
a part, any of them may be absent, and their words cross: a list that was asked for before a container was deleted
arrives after it. So every word has the time when it was true, and an older one never undoes a newer one. The API server,
where there is one, tells of pods' annotations alone: the runtime knows them only as they were when the sandbox was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from expedited.annotations import relevant, resolve
from expedited.errors import UsageError
from expedited.settings import AgentSettings
from expedited.sighting import Container, Sighting, Source, State, merge
from expedited.teardown.policy import Policy

__all__ = ["Change", "Container", "Inventory", "NotFoundError", "Sighting", "Source", "State"]


# Lists that are older than a thousand removals do not arrive any more.
_MOST_GRAVES = 1024


class NotFoundError(UsageError):
    """What was named is not here, or is several."""


@dataclass(frozen=True, slots=True)
class Change:
    """What the striker has to be told.

    Attributes:
        policies: By container id, where it is not what was last told (at first: the node's default).
        gone: Containers that are no more.
        problems: Lines about annotations that their pod did not have before.
    """

    policies: Mapping[str, Policy]
    gone: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Inventory:
    """All containers by id. Used from one thread (the agent's event loop); nothing here waits.

    Args:
        settings: Where the defaults are.
        changed: Called with every change that matters to the striker, before the method that made it returns.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: AgentSettings,
        changed: Callable[[Change], None] = lambda change: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._changed = changed
        self._clock = clock
        self._containers: dict[str, Container] = {}
        self._members: dict[str, set[str]] = {}
        self._annotations: dict[str, dict[str, str]] = {}
        self._annotations_now: dict[str, dict[str, str]] = {}  # by pod uid, as the API server has them
        self._deleted_pods: set[str] = set()  # which it has no more, and whose containers are still here
        # When each of those that went was last known to be gone: against lists that were made before.
        self._graves: dict[str, float] = {}
        # Whose they were: the report of a stop may come when its container is off the records already.
        self._departed: dict[str, Container] = {}

    def __len__(self) -> int:
        return len(self._containers)

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._containers.values()))

    def get(self, container_id: str) -> Container | None:
        """The container with exactly this id."""
        return self._containers.get(container_id)

    def recall(self, container_id: str) -> Container | None:
        """The same, also for one that went a while ago."""
        return self._containers.get(container_id) or self._departed.get(container_id)

    def policies(self) -> dict[str, Policy]:
        """By container id, all that are not the node's default: what a striker that knows nothing has to be told."""
        return {known.id: known.policy for known in self if known.policy != self._settings.policy}

    def saw(self, source: Source, *sightings: Sighting, at: float | None = None) -> None:
        """Take in what a source tells of some containers, known or new.

        Args:
            source: Who tells.
            sightings: What.
            at: When that was true, in the clock's seconds: for a list, when it was asked for. Now, if not said.
        """
        when = self._clock() if at is None else at
        self._settle([name for sighting in sightings for name in self._take(source, sighting, when)])

    def annotate(self, pod_uid: str, annotations: Mapping[str, str] | None) -> None:
        """Take in what the API server has on a pod now, which goes before what its sandbox was made with.

        Args:
            pod_uid: The pod's, whether or not a container of it is known yet.
            annotations: All that there are; None: the pod is not there any more. If it was deleted by force its containers
                still are, and what they were last said to be holds for them.
        """
        if annotations is None:
            if pod_uid in self._members:
                self._deleted_pods.add(pod_uid)
            else:
                self._annotations_now.pop(pod_uid, None)
            return
        now = self._annotations_now[pod_uid] = relevant(annotations)
        if pod_uid in self._members:
            self._settle(self._hold_for(pod_uid, now))

    def exited(self, source: Source, container_id: str) -> None:
        """Its init process is gone; the container itself may start again or be removed."""
        if container_id in self._containers:
            self.saw(source, Sighting(container_id, state=State.STOPPED))

    def forget(self, *container_ids: str) -> None:
        """They were removed."""
        now = self._clock()
        gone = tuple(name for name in container_ids if self._drop(name, now))
        if gone:
            self._changed(Change({}, gone))

    def reconcile(
        self, source: Source, sightings: Iterable[Sighting], *, at: float, runtime_namespace: str = ""
    ) -> None:
        """Take in all that a source knows, and let go of what it knew before and does not any more.

        A container goes when its last source has lost it, or when containerd has: nothing is without a record there.

        Args:
            source: Who tells.
            sightings: All there are.
            at: When the list was asked for, in the clock's seconds; who was seen later than that stays.
            runtime_namespace: The list is of this one alone; empty: of all.
        """
        listed = list(sightings)
        here = {sighting.id for sighting in listed}
        gone = []
        for known in self:
            elsewhere = runtime_namespace and known.seen.runtime_namespace != runtime_namespace
            if known.id in here or source not in known.sources or elsewhere or max(known.sources.values()) > at:
                continue
            left = {name: when for name, when in known.sources.items() if name is not source}
            if left and source is not Source.CONTAINERD:
                self._containers[known.id] = replace(known, sources=left)
            elif self._drop(known.id, at):
                gone.append(known.id)
        if gone:
            self._changed(Change({}, tuple(gone)))
        self.saw(source, *listed, at=at)

    def find(self, prefix: str) -> Container:
        """The container with this id, or the only one whose id begins so.

        Raises:
            NotFoundError: there is none, or more than one.
        """
        exact = self._containers.get(prefix)
        if exact is not None:
            return exact
        found = [known for known in self if prefix and known.id.startswith(prefix)]
        if not found:
            raise NotFoundError(f"no container's id begins with {prefix!r}: `expedited top` shows the ids")
        if len(found) > 1:
            some = ", ".join(sorted(known.id[: max(16, len(prefix) + 4)] for known in found)[:4])
            raise NotFoundError(f"{len(found)} containers' ids begin with {prefix!r} ({some}): give more of the id")
        return found[0]

    def by_pod(self, pod: str) -> tuple[Container, ...]:
        """The containers of a pod, named by its uid or as NAMESPACE/NAME; its sandbox comes last.

        Raises:
            NotFoundError: there is no such pod, or there are two of that name (one of them on its way out).
        """
        found = [known for known in self if pod and pod in (known.seen.pod_uid, known.pod)]
        if not found:
            raise NotFoundError(f"no pod {pod!r} on this node: give its uid or NAMESPACE/NAME")
        uids = sorted({known.seen.pod_uid for known in found})
        if len(uids) > 1:
            raise NotFoundError(f"{len(uids)} pods are called {pod!r}: name one by its uid ({', '.join(uids)})")
        return tuple(sorted(found, key=lambda known: (known.sandbox, known.seen.name, known.id)))

    def _take(self, source: Source, news: Sighting, when: float) -> Iterable[str]:
        """Merge one sighting; the ids whose policy may be another now."""
        if self._graves.get(news.id, -1.0) >= when:
            return ()
        self._graves.pop(news.id, None)
        known = self._containers.get(news.id)
        if known is None:
            known = Container(Sighting(news.id), self._settings.policy, (), {})
        sources = {**known.sources, source: max(when, known.sources.get(source, when))}
        before = known.seen
        seen = merge(before, news, newer=when >= max(known.sources.values(), default=when))
        self._containers[news.id] = replace(known, seen=seen, sources=sources)
        self._regroup(before, seen)
        affected = {news.id}
        group = seen.group
        now = self._annotations_now.get(group)
        if now is None and news.annotations is not None:
            now = relevant(news.annotations)
        if now is not None:
            affected |= self._hold_for(group, now)
        return affected

    def _hold_for(self, group: str, annotations: dict[str, str]) -> set[str]:
        """These are a group's annotations; whose policy may be another now."""
        if self._annotations.get(group, {}) == annotations:
            return set()
        self._annotations[group] = annotations
        return self._members[group]

    def _regroup(self, before: Sighting, seen: Sighting) -> None:
        """Keep track of which containers share a pod, whose identity may be learnt late."""
        old, new = before.group, seen.group
        if old != new:
            self._leave(old, seen.id, heir=new)
        self._members.setdefault(new, set()).add(seen.id)

    def _leave(self, group: str, container_id: str, heir: str = "") -> None:
        members = self._members.get(group, set())
        members.discard(container_id)
        if not members:
            self._members.pop(group, None)
            annotations = self._annotations.pop(group, None)
            if group in self._deleted_pods:
                self._deleted_pods.discard(group)
                self._annotations_now.pop(group, None)
            if heir and annotations is not None:
                self._annotations.setdefault(heir, annotations)

    def _drop(self, container_id: str, when: float) -> bool:
        self._graves[container_id] = when
        if len(self._graves) > _MOST_GRAVES:
            del self._graves[next(iter(self._graves))]
        known = self._containers.pop(container_id, None)
        if known is not None:
            self._departed[container_id] = known
            if len(self._departed) > _MOST_GRAVES:
                del self._departed[next(iter(self._departed))]
            self._leave(known.seen.group, container_id)
        return known is not None

    def _settle(self, container_ids: Iterable[str]) -> None:
        """Resolve the policies anew, and tell of those that changed."""
        policies: dict[str, Policy] = {}
        problems: dict[str, None] = {}
        for name in dict.fromkeys(container_ids):
            known = self._containers[name]
            seen = known.seen
            annotations = self._annotations.get(seen.group, {})
            base = self._settings.namespaces.get(seen.pod_namespace, self._settings.policy)
            said = resolve(annotations, base, pod=known.pod or seen.id, container=seen.name)
            if said.policy != known.policy:
                policies[name] = said.policy
            # Said once a pod, and not again for each of its containers
            heard = {line for member in self._members[seen.group] for line in self._containers[member].problems}
            problems |= dict.fromkeys(line for line in said.problems if line not in heard)
            self._containers[name] = Container(
                replace(seen, annotations=annotations), said.policy, said.problems, known.sources
            )
        if policies or problems:
            self._changed(Change(policies, problems=tuple(problems)))

"""What a pod's annotations say about its teardown.

``expedited.io/mode: observe`` holds for the whole pod, ``expedited.io/mode.NAME: off`` for its container NAME alone and
before the former. Whoever writes something that is not understood gets told, and their pod is left alone: a typing
error must never be the reason why a strike happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from expedited.quantity import SECONDS_ACCEPTED, SIZE_ACCEPTED, parse_seconds, parse_size
from expedited.teardown.policy import Mode, Order, PageCache, Policy

__all__ = ["PREFIX", "TERMS", "Resolution", "Term", "nearest", "relevant", "resolve"]

PREFIX = "expedited.io/"

# A message stays one line, whatever somebody put into an annotation (which may have 256 KiB).
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a policy says, as users write it in annotations and in the configuration.

    Attributes:
        field: The field of :class:`Policy` that it sets.
        parse: Text to that field's value; ValueError where it is none.
        accepted: What may be written, for messages.
        meaning: What it does, for the reference.
        words: The only values there are, where they can be counted.
    """

    field: str
    parse: Callable[[str], Any]
    accepted: str
    meaning: str
    words: tuple[str, ...] = ()


def _choice(field: str, kind: type[StrEnum], meaning: str) -> Term:
    words = tuple(member.value for member in kind)
    return Term(field, kind, _listed(words), meaning, words)


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


_SWITCH = {"on": True, "true": True, "off": False, "false": False}


def _switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ValueError(text)
    return _SWITCH[text]


def _deadline(text: str) -> float:
    # The engine's own limit holds: what it would not take must not reach it from one pod's annotation
    return Policy.from_json({"deadline_seconds": parse_seconds(text)}).deadline_seconds


#: Every term by the name that it has in an annotation and in the configuration.
TERMS: Mapping[str, Term] = {
    "mode": _choice(
        "mode",
        Mode,
        "Strike; observe (measure, and kill and free nothing); compare (strike one half of the containers, observe the other); or leave alone.",
    ),
    "page-cache": _choice(
        "page_cache",
        PageCache,
        "Clean page cache that is left behind: dropped, kept, or `auto`: dropped when the pod goes for good, kept when "
        "the container restarts in place.",
    ),
    "boost": Term(
        "boost",
        _switch,
        "on or off",
        "Whether dying processes are scheduled ahead of all other work (real-time priority; quota, weight, CPU set lifted).",
        ("on", "off"),
    ),
    "min-size": Term(
        "min_size_bytes", parse_size, SIZE_ACCEPTED, "A container with less anonymous memory is not struck."
    ),
    "order": _choice(
        "order",
        Order,
        "Who sends SIGKILL first: `lead` the agent, `follow` the runtime; `auto` decides by the container's processes, and by whether a CPU "
        "is idle.",
    ),
    "deadline": Term(
        "deadline_seconds",
        _deadline,
        f"{SECONDS_ACCEPTED}, up to an hour",
        "After this long a strike stops, and reports what it achieved.",
    ),
}


@dataclass(frozen=True, slots=True)
class Resolution:
    """The policy that holds for one container, and what was wrong with its pod's annotations, a line each."""

    policy: Policy
    problems: tuple[str, ...] = ()


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean X?`` where one of ``known`` is like ``word``, else nothing; ``prefix`` goes before X."""
    close = get_close_matches(word[:_LONGEST], list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def relevant(annotations: Mapping[str, str]) -> dict[str, str]:
    """Those that are meant for the agent: the only ones that it keeps."""
    return {key: value for key, value in annotations.items() if key.startswith(PREFIX)}


def resolve(annotations: Mapping[str, str], base: Policy, *, pod: str, container: str = "") -> Resolution:
    """Lay a pod's annotations over the policy that would hold without them.

    Args:
        annotations: All of the pod's; those of others are passed over.
        base: The default of the pod's namespace or of the node.
        pod: How to name it in a message.
        container: The container's name in the pod, for the form ``expedited.io/KEY.NAME``; empty for the sandbox.

    Returns:
        The policy. Where one annotation is not understood it is ``base`` with mode off, for every container of that
        pod, and ``problems`` says why.
    """
    general: dict[str, Any] = {}
    special: dict[str, Any] = {}
    problems = []
    for key, value in sorted(relevant(annotations).items()):
        name, dot, only_for = key.removeprefix(PREFIX).partition(".")
        term = TERMS.get(name)
        if term is None or (dot and not only_for):
            problems.append(f"pod {pod} is left alone: {_unknown(key, name)}")
            continue
        try:
            parsed = term.parse(value)
        except ValueError:
            problems.append(f"pod {pod} is left alone: annotation {key} takes {_not(term, value)}")
            continue
        if not only_for:
            general[term.field] = parsed
        elif only_for == container:
            special[term.field] = parsed
    if problems:
        return Resolution(replace(base, mode=Mode.OFF), tuple(problems))
    return Resolution(replace(base, **(general | special)))


def _unknown(key: str, name: str) -> str:
    hint = nearest(name, TERMS, PREFIX) or f"; there are {PREFIX}{_listed([*TERMS]).replace(' or ', ' and ')}"
    return f"no annotation is called {_short(key)}{hint}"


def _not(term: Term, value: str) -> str:
    return f"{term.accepted}, not {_short(repr(value))}{nearest(value, term.words)}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."

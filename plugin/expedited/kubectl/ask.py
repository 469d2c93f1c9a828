"""One question to every node: what came of it, and a line for each node that could not say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from expedited.kubectl.cluster import Answer, Cluster

__all__ = ["Options", "ask", "print_json", "read", "tell_failed"]

_Kind = TypeVar("_Kind", bound=Message)


@dataclass(frozen=True, slots=True)
class Options:
    """What every command takes.

    Attributes:
        node: Only this one; empty: all.
        agents_in: The agents' namespace; empty: anywhere.
        as_json: ``-o json``.
    """

    cluster: Cluster
    node: str
    agents_in: str
    as_json: bool


def ask(options: Options, *command: str, node: str = "") -> list[Answer]:
    """Run ``expedited COMMAND`` on all nodes that are meant; ``node`` narrows it to one."""
    agents = options.cluster.agents(node=options.node or node, namespace=options.agents_in)
    return options.cluster.ask_all(agents, ("expedited", *command))


def read(kind: type[_Kind], data: dict[str, Any]) -> _Kind:
    """A message of the control API from the JSON that ``expedited ... --json`` prints; what is newer is passed over."""
    message = kind()
    json_format.ParseDict(data, message, ignore_unknown_fields=True)
    return message


def print_json(items: Iterable[dict[str, Any]], answers: Sequence[Answer]) -> None:
    """One document: what was found, and which nodes could not be asked."""
    failed = [{"node": answer.node, "problem": answer.problem} for answer in answers if answer.problem]
    print(json.dumps({"items": list(items), "failed": failed}, indent=2))


def tell_failed(answers: Sequence[Answer]) -> int:
    """A line on stderr for each node that could not say.

    Returns:
        The exit code: 1 when there was one.
    """
    failed = [answer for answer in answers if answer.problem]
    for answer in failed:
        print(f"kubectl expedited: node {answer.node}: {answer.problem}", file=sys.stderr)
    return 1 if failed else 0

"""What ``kubectl expedited`` can be asked; each function prints the answer and returns the exit code."""

from __future__ import annotations

import re
from typing import Any

from rich.table import Table
from rich.text import Text

from expedited.cli.tables import console, held, outcome_text
from expedited.errors import ExpeditedError, UsageError
from expedited.kubectl.ask import Options, ask, print_json, read, tell_failed
from expedited.kubectl.cluster import Answer
from expedited.kubectl.findings import show_findings
from expedited.kubectl.story import known, story, time
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.quantity import format_seconds, format_size

__all__ = ["doctor", "status", "stops", "top", "why"]


def top(options: Options, namespace: str) -> int:
    """Containers of all nodes, the largest first."""
    answers = ask(options, "top", "--once", "--json")
    found = [
        {"node": answer.node, **container}
        for answer in answers
        for part in answer.objects
        for container in part["containers"]
        if not namespace or _of(container, "namespace") == namespace
    ]
    found.sort(key=lambda each: -((each.get("memory") or {}).get("anon_bytes") or 0))
    if options.as_json:
        print_json(found, answers)
        return tell_failed(answers)
    table = _table("node", "container", "state", "memory", "files", "mode", "gated", right=("memory", "files"))
    for each in found:
        container = read(pb.Container, _without_node(each))
        table.add_row(
            each["node"],
            _label(container.pod, container.name or container.id[:12]),
            container.state,
            held(container, "anon_bytes"),
            held(container, "file_bytes"),
            container.policy.mode,
            "yes" if container.gated else Text("no", style="yellow"),
        )
    return _printed(table, answers, nothing="no containers")


def stops(options: Options, namespace: str, pod: str, limit: int) -> int:
    """Stops of all nodes, the oldest of the newest first."""
    in_namespace, name = _split(pod, namespace)
    answers, found = _stops(options, in_namespace, name, whole=False, limit=limit)
    if options.as_json:
        print_json(found, answers)
        return tell_failed(answers)
    right = ("back", "after", "gone")
    table = _table("time", "node", "container", "outcome", *right, "order", "trigger", right=right)
    for each in found:
        stop = read(pb.Stop, _without_node(each))
        table.add_row(
            time(stop),
            each["node"],
            _label(stop.pod, stop.container_name or stop.container_id[:12] or stop.cgroup),
            outcome_text(stop.outcome),
            format_size(stop.bytes_returned),
            format_seconds(known(stop, "memory_back_seconds")),
            format_seconds(known(stop, "gone_seconds")),
            stop.order or "-",
            stop.trigger,
        )
    return _printed(table, answers, nothing="no stops yet")


def status(options: Options) -> int:
    """A line a node."""
    answers = ask(options, "status", "--json")
    found = [{"node": answer.node, **part} for answer in answers for part in answer.objects]
    broken = any(each.get("striker") != "ok" for each in found)
    if options.as_json:
        print_json(found, answers)
        return tell_failed(answers) or int(broken)
    columns = ("version", "striker", "nri", "containerd", "kubernetes", "kernel", "gated", "stops", "memory")
    table = _table("node", *columns, right=("gated", "stops", "memory"))
    for each in found:
        node = read(pb.Status, _without_node(each))
        resident = sum(process.rss_bytes for process in node.processes)
        table.add_row(
            each["node"],
            node.version,
            _state(node.striker),
            _state(node.nri),
            _state(node.containerd),
            _state(node.kubernetes),
            node.kernel or "-",
            f"{node.gated}/{node.containers}",
            str(node.stops),
            format_size(resident),
        )
    return _printed(table, answers, nothing="no agent could be asked") or int(broken)


def doctor(options: Options) -> int:
    """What is missing, told once for all the nodes that lack it."""
    answers = ask(options, "doctor", "--json")
    found = [{"node": answer.node, **part} for answer in answers for part in answer.objects]
    works = all(each.get("works") for each in found)
    if options.as_json:
        print_json(found, answers)
    else:
        show_findings(found, console())
    return tell_failed(answers) or int(not works)


def why(options: Options, namespace: str, pod: str, limit: int) -> int:
    """One pod's last stops, each as a story.

    Raises:
        ExpeditedError: no node remembers one.
    """
    in_namespace, name = _split(pod, namespace or options.cluster.namespace)
    if not all(map(_NAME.fullmatch, (in_namespace, name))):
        raise UsageError(f"{pod!r} is no pod: give NAME or NAMESPACE/NAME")
    # A pod that is there is known to its node alone; of one that has gone, any node may know
    node = options.node or options.cluster.node_of(in_namespace, name)
    answers, found = _stops(options, in_namespace, name, whole=True, limit=limit, node=node)
    failed = tell_failed(answers)
    if options.as_json:
        print_json(found, answers)
        return failed
    if not found:
        if failed:
            return failed
        raise ExpeditedError(
            f"no node remembers a stop of {in_namespace}/{name}: none of its containers was killed since the agent "
            "started (who exits by itself before a SIGTERM, or at once on it, is not), or it is off the last 512 of its node"
        )
    for each in found:
        told = story(read(pb.Stop, _without_node(each)), each["node"])
        console().print(told, soft_wrap=True, highlight=False, markup=False)
    return failed


def _stops(
    options: Options, namespace: str, name: str, *, whole: bool, limit: int, node: str = ""
) -> tuple[list[Answer], list[dict[str, Any]]]:
    """The newest of all nodes in time order; ``whole``: the pod has exactly that name."""
    # The node filters by what a name begins with, so that little travels
    prefix = f"{namespace}/{name}" if namespace else name
    narrowed = ("--limit=0", "--", prefix) if prefix else (f"--limit={limit}",)
    answers = ask(options, "stops", "--json", *narrowed, node=node)
    found = [
        {"node": answer.node, **stop}
        for answer in answers
        for stop in answer.objects
        if (not namespace or _of(stop, "namespace") == namespace)
        and (_of(stop, "name") == name if whole else _of(stop, "name").startswith(name))
    ]
    found.sort(key=lambda stop: float(stop["started_at"]))
    return answers, found[-limit:] if limit else found


def _of(thing: dict[str, Any], key: str) -> str:
    return str((thing.get("pod") or {}).get(key) or "")


# Of a pod and a namespace (RFC 1123), as they are asked for by it: what is none must not become another path of the API
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


def _split(pod: str, namespace: str) -> tuple[str, str]:
    """NAMESPACE/NAME, or a name in a namespace that was said otherwise."""
    before, slash, name = pod.rpartition("/")
    if slash and (not before or not name or "/" in before):
        raise UsageError(f"{pod!r} is no pod: give NAME or NAMESPACE/NAME")
    return (before, name) if slash else (namespace, pod)


def _without_node(each: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in each.items() if key != "node"}


def _label(pod: pb.Pod, name: str) -> Text:
    where = f"{pod.namespace}/{pod.name}/" if pod.name else ""
    return Text(where + name, no_wrap=True, overflow="ellipsis")


def _state(text: str) -> Text:
    style = {"ok": "green", "off": "dim", "": "dim"}.get(text, "yellow")
    return Text(text or "-", style=style)


def _table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        justify: Any = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in ("container", "striker", "nri", "containerd"))
    return table


def _printed(table: Table, answers: list[Answer], *, nothing: str) -> int:
    if table.rows:
        console().print(table)
    elif not all(answer.problem for answer in answers):
        print(nothing)
    return tell_failed(answers)

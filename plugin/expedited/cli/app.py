"""The commands and their flags. What a command does is in the module of its name, loaded when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expedited import __version__

if TYPE_CHECKING:
    from expedited.settings import AgentSettings

__all__ = ["app"]

app = typer.Typer(
    help="Gives a killed container's memory back to the node at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Measure what the gate costs and how fast a strike is, on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

_Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file (default: /etc/expedited/config.yaml, if there is one)."),
]
_RunDir = Annotated[str | None, typer.Option(help="Where the agent's sockets are.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_PageCache = Annotated[str | None, typer.Option(help="auto, drop or keep.")]
_Boost = Annotated[str | None, typer.Option(help="on or off: schedule dying processes ahead of all other work.")]
_Deadline = Annotated[str | None, typer.Option(help="How long a strike may last, such as 30s.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"expedited {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _settings(config: Path | None, **overrides: Any) -> AgentSettings:
    from expedited.config import load

    return load(config, overrides)


@app.command()
def run(
    config: _Config = None,
    run_dir: _RunDir = None,
    mode: Annotated[str | None, typer.Option(help="strike, observe, compare or off.")] = None,
    page_cache: _PageCache = None,
    boost: _Boost = None,
    min_size: Annotated[str | None, typer.Option(help="Leave smaller containers alone, such as 1Mi.")] = None,
    order: Annotated[str | None, typer.Option(help="auto, lead or follow.")] = None,
    deadline: _Deadline = None,
    state_root: Annotated[
        list[str] | None,
        typer.Option(help="Runtime's state directory to gate; repeat for more; * may be the whole last part."),
    ] = None,
    nri_socket: Annotated[str | None, typer.Option(help="The runtime's NRI socket; '' for none.")] = None,
    containerd_socket: Annotated[str | None, typer.Option(help="containerd's gRPC socket; '' for none.")] = None,
    metrics_address: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus; '' for none.")] = None,
    source: Annotated[str | None, typer.Option(help="How kills are seen: auto, gate or observe.")] = None,
    budget: Annotated[str | None, typer.Option(help="The longest the gate holds a runtime, such as 50ms.")] = None,
    keep_striker: Annotated[
        bool | None, typer.Option("--keep-striker", help="Leave the striker at work when the agent is stopped.")
    ] = None,
    kubernetes: Annotated[str | None, typer.Option(help="auto, off or the path of a kubeconfig.")] = None,
    node_name: Annotated[str | None, typer.Option(help="This node's name in Kubernetes.")] = None,
    event_min_size: Annotated[
        str | None, typer.Option(help="No Event for a stop that gave back less, such as 256Mi.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
) -> None:
    """Be the node agent: catch kills, strike, report. Flags override EXPEDITED_... variables, which override the file."""
    from expedited.cli.run import become_agent

    policy = {"mode": mode, "page-cache": page_cache, "boost": boost, "min-size": min_size, "order": order}
    settings = _settings(
        config,
        **{
            "run-dir": run_dir,
            "policy": policy | {"deadline": deadline},
            "state-roots": state_root or None,
            "nri-socket": nri_socket,
            "containerd-socket": containerd_socket,
            "metrics-address": metrics_address,
            "source": source,
            "budget-seconds": budget,
            "keep-striker": keep_striker,
            "kubernetes": kubernetes,
            "node-name": node_name,
            "event-min-size-bytes": event_min_size,
            "log-level": log_level,
            "log-format": log_format,
        },
    )
    become_agent(settings)


@app.command()
def kill(
    container: Annotated[str | None, typer.Argument(help="A container's id, or the beginning of it.")] = None,
    cgroup: Annotated[
        str | None,
        typer.Option(help="A cgroup instead: its directory, or its path. As root, this works without an agent, too."),
    ] = None,
    pod: Annotated[str | None, typer.Option(help="A pod instead: its uid, or NAMESPACE/NAME.")] = None,
    page_cache: _PageCache = None,
    boost: _Boost = None,
    deadline: _Deadline = None,
    config: _Config = None,
    run_dir: _RunDir = None,
    json: _Json = False,
) -> None:
    """Kill a container, a cgroup or a pod now, with no grace, and say what came of it. Overrides mode and min-size, annotations too."""
    from expedited.cli.kill import kill as do

    settings = _settings(config, **{"run-dir": run_dir})
    raise typer.Exit(
        do(
            settings,
            container_id=container,
            cgroup=cgroup,
            pod=pod,
            page_cache=page_cache,
            boost=boost,
            deadline=deadline,
            as_json=json,
        )
    )


@app.command()
def stops(
    container: Annotated[
        str | None,
        typer.Argument(help="Only stops whose container id or name, pod name or NAMESPACE/POD starts with this."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep running, and print each stop as it ends.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="How many of the newest stops; 0: all that are remembered.")
    ] = 20,
    steps: Annotated[bool, typer.Option("--steps", help="With the story of each, in time order.")] = False,
    config: _Config = None,
    run_dir: _RunDir = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, a stop a line.")] = False,
) -> None:
    """Show the stops that the agent saw: what came back, and when."""
    from expedited.cli.stops import show_stops

    settings = _settings(config, **{"run-dir": run_dir})
    show_stops(settings, prefix=container or "", follow=follow, limit=limit, steps=steps, as_json=json)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once and exit.")] = False,
    every: Annotated[float, typer.Option(min=0.2, max=60.0, help="Seconds between looks.")] = 1.0,
    config: _Config = None,
    run_dir: _RunDir = None,
    json: _Json = False,
) -> None:
    """A live table of containers, what memory they hold, and recent stops."""
    from expedited.cli.top import show_top

    show_top(_settings(config, **{"run-dir": run_dir}), once=once, every_seconds=every, as_json=json)


@app.command()
def status(config: _Config = None, run_dir: _RunDir = None, json: _Json = False) -> None:
    """How the agent is: what it is connected to, what it gates, what memory it takes."""
    from expedited.cli.status import show_status

    raise typer.Exit(show_status(_settings(config, **{"run-dir": run_dir}), as_json=json))


@app.command()
def doctor(config: _Config = None, run_dir: _RunDir = None, json: _Json = False) -> None:
    """Check what this machine offers: what was found, what it costs if missing, how to get it."""
    from expedited.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(_settings(config, **{"run-dir": run_dir}), json=json, config=config))


@app.command()
def close(config: _Config = None, run_dir: _RunDir = None) -> None:
    """End the gate for good, before the agent is taken away: a pod's preStop hook. Kills are the runtime's then."""
    from expedited.api.client import ApiClient

    with ApiClient(_settings(config, **{"run-dir": run_dir}).api_socket) as agent:
        typer.echo(f"striker: {agent.close_gate().striker}")


@app.command()
def install(
    host: Annotated[
        bool, typer.Option("--host", help="Put the agent onto this node, which has no Kubernetes.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take back what was installed; files changed since are left, and named.")
    ] = False,
    start_by: Annotated[
        str | None, typer.Option(help="systemd, or nri: the runtime itself (default: systemd where it runs, else nri).")
    ] = None,
    root: Annotated[Path, typer.Option(help="The node's root directory, to prepare an image; starts nothing.")] = Path(
        "/"
    ),
) -> None:
    """Put the agent onto a node without Kubernetes (a unit, or an NRI plugin; NRI on in containerd), or take it back."""
    from expedited.cli.install import change_host

    change_host(host=host, remove=remove, start_by=start_by, root=root)


@app.command()
def demo(
    pairs: Annotated[
        int, typer.Option(help="Pairs of stops in each scenario; three times as many in idle and tree.")
    ] = 5,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeat for more. graceful is shown on demand only.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help="A real server to stop in the end: redis or stress-ng; '' for none.")
    ] = "redis",
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the figures there: by scenario the medians of both ways, their ratio, and every pair.",
        ),
    ] = None,
) -> None:
    """Show it: the runtime's own kill beside ours, on a private containerd, and nothing left afterwards."""
    from expedited.demo.run import DemoOptions, run_demo

    options = DemoOptions(pairs, tuple(scenario or ()), workload or None, json)
    raise typer.Exit(run_demo(options))


@bench.command()
def gate(
    runs: Annotated[int | None, typer.Option(help="How many opens with and without the gate.")] = None,
    json: _Json = False,
) -> None:
    """What it costs to open a state file under the gate when it is no kill."""
    from expedited.cli.bench import bench_gate

    raise typer.Exit(bench_gate(runs, as_json=json))


@bench.command()
def strike(
    runs: Annotated[int | None, typer.Option(help="How many strikes.")] = None,
    json: _Json = False,
) -> None:
    """From the kill to the last signal, and reaping against a plain kill."""
    from expedited.cli.bench import bench_strike

    raise typer.Exit(bench_strike(runs, as_json=json))

"""The commands of ``kubectl expedited`` and their flags: kubectl's own names for what kubectl has, too."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from expedited import __version__

if TYPE_CHECKING:
    from expedited.kubectl.ask import Options

__all__ = ["app"]

app = typer.Typer(
    help="What the node agents of this cluster gave back of killed containers' memory, and how they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Output(StrEnum):
    TABLE = "table"
    JSON = "json"


def _output(text: str) -> _Output:
    # kubectl's own flags may also be written -o=json
    try:
        return _Output(text.removeprefix("="))
    except ValueError as error:
        raise typer.BadParameter(f"give {' or '.join(_Output)}, not {text!r}") from error


_Node = Annotated[str, typer.Option("--node", help="Only this node's agent.")]
_Out = Annotated[_Output, typer.Option("--output", "-o", parser=_output, metavar="table|json", help="How to print.")]
_Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="The pods' namespace.")]
_AgentsIn = Annotated[
    str, typer.Option("--agent-namespace", help="The agents' namespace (default: they are found by their label).")
]
_Context = Annotated[str, typer.Option("--context", help="Context of the kubeconfig to use.")]
_Kubeconfig = Annotated[str, typer.Option("--kubeconfig", help="The kubeconfig to use.")]
_Timeout = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds to wait for a node.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kubectl expedited {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _ready(kubeconfig: str, context: str, timeout: float, node: str, agents_in: str, output: _Output) -> Options:
    from expedited.kubectl.ask import Options
    from expedited.kubectl.cluster import Cluster

    return Options(Cluster(kubeconfig, context, timeout), node, agents_in, output is _Output.JSON)


@app.command()
def top(
    node: _Node = "",
    namespace: _Namespace = None,
    output: _Out = _Output.TABLE,
    agents_in: _AgentsIn = "",
    context: _Context = "",
    kubeconfig: _Kubeconfig = "",
    timeout: _Timeout = 30.0,
) -> None:
    """The containers of all nodes and what memory they hold, the largest first."""
    from expedited.kubectl.questions import top as do

    raise typer.Exit(do(_ready(kubeconfig, context, timeout, node, agents_in, output), namespace or ""))


@app.command()
def stops(
    pod: Annotated[
        str, typer.Argument(help="Only stops of pods whose name, or NAMESPACE/NAME, starts with this.")
    ] = "",
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="How many of the newest stops; 0: all that are remembered.")
    ] = 20,
    node: _Node = "",
    namespace: _Namespace = None,
    output: _Out = _Output.TABLE,
    agents_in: _AgentsIn = "",
    context: _Context = "",
    kubeconfig: _Kubeconfig = "",
    timeout: _Timeout = 30.0,
) -> None:
    """The stops that the agents saw: what came back, and when."""
    from expedited.kubectl.questions import stops as do

    raise typer.Exit(do(_ready(kubeconfig, context, timeout, node, agents_in, output), namespace or "", pod, limit))


@app.command()
def status(
    node: _Node = "",
    output: _Out = _Output.TABLE,
    agents_in: _AgentsIn = "",
    context: _Context = "",
    kubeconfig: _Kubeconfig = "",
    timeout: _Timeout = 30.0,
) -> None:
    """How the agents are: a line for each node."""
    from expedited.kubectl.questions import status as do

    raise typer.Exit(do(_ready(kubeconfig, context, timeout, node, agents_in, output)))


@app.command()
def doctor(
    node: _Node = "",
    output: _Out = _Output.TABLE,
    agents_in: _AgentsIn = "",
    context: _Context = "",
    kubeconfig: _Kubeconfig = "",
    timeout: _Timeout = 60.0,
) -> None:
    """What the nodes lack, what that costs and how to get it: what several nodes lack is told once."""
    from expedited.kubectl.questions import doctor as do

    raise typer.Exit(do(_ready(kubeconfig, context, timeout, node, agents_in, output)))


@app.command()
def why(
    pod: Annotated[str, typer.Argument(help="A pod, there or gone: NAME or NAMESPACE/NAME.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of its newest stops.")] = 3,
    node: _Node = "",
    namespace: _Namespace = None,
    output: _Out = _Output.TABLE,
    agents_in: _AgentsIn = "",
    context: _Context = "",
    kubeconfig: _Kubeconfig = "",
    timeout: _Timeout = 30.0,
) -> None:
    """The story of a pod's last stops: who killed it, what was done, what came back and when."""
    from expedited.kubectl.questions import why as do

    options = _ready(kubeconfig, context, timeout, node, agents_in, output)
    raise typer.Exit(do(options, namespace or "", pod, limit))

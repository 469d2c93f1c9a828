"""The pages that are made from the code or lie beside it, so that they can't be behind it.

Some are committed, so that links to them hold in a checkout as well: `python docs/reference.py [DIRECTORY]` writes those (a test holds
that they are as they would be written now). The others are made when the site is: this is mkdocs' hook, too.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from expedited.annotations import PREFIX, TERMS
from expedited.cli.app import app
from expedited.config import ACCEPTED
from expedited.doctor import examine
from expedited.kubectl.app import app as kubectl_app
from expedited.settings import AgentSettings
from expedited.teardown.policy import Policy

#: The programs of the command reference.
PROGRAMS = {"expedited": app, "kubectl expedited": kubectl_app}

_CHECKOUT = Path(__file__).parents[1]
_API = _CHECKOUT / "proto/v1/expedited.proto"
_KERNEL = _CHECKOUT / "deploy/kernel/README.md"
_MADE = "<!-- Made by `python docs/reference.py` from the code: do not edit. -->"
_API_HEADS = {
    "service": ["| call | takes | answers | what it does |", "|---|---|---|---|"],
    "message": ["| field | type | what it is |", "|---|---|---|"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here to those that lie in docs/."""
    for name, page in (("api.md", api()), ("kernel.md", kernel())):
        files.append(File.generated(config, name, content=page))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link into the checkout, to what has a page of its own in the site; and what is made anew for each site."""
    if page.file.src_uri == "troubleshooting.md":
        markdown += findings()
    return markdown.replace("](../deploy/kernel/README.md", "](kernel.md")


def committed() -> dict[str, str]:
    """The pages that lie in docs/, by their names."""
    return {"annotations.md": annotations(), "configuration.md": configuration(), "commands.md": commands()}


def annotations() -> str:
    """Every annotation: what it takes, its default, what it means."""
    return "\n".join(
        [
            "# Annotations of a pod",
            "",
            _MADE,
            "",
            f"`{PREFIX}KEY` applies to the whole pod; `{PREFIX}KEY.NAME` applies to its container NAME and overrides the former. Without",
            "either, the default of the pod's namespace applies, else the node's ([configuration](configuration.md)).",
            "",
            'They go into the pod\'s template, quoted where YAML would make a boolean of the value (`"off"`, `"on"`). On a running pod',
            "`kubectl annotate` works too, if the agent may ask the API server (`kubernetes.events` in the chart) and the pod is not static.",
            "",
            "An annotation that is not understood is reported in one line of the agent's log, with the nearest name, and that pod is left",
            "alone (mode off): a typing error in a key or a value is never the reason for a strike. (A container NAME that the pod does not have",
            "cannot be told from one that has yet to come.)",
            "",
            "| annotation | takes | default | what it does |",
            "|---|---|---|---|",
            *(f"| `{PREFIX}{name}` | {_term(name)} |" for name in TERMS),
            "",
        ]
    )


def configuration() -> str:
    """Every key of the file with its variable, its default and its meaning."""
    meaning = _attributes(AgentSettings)
    flags = _flags()
    rows = []
    for field in fields(AgentSettings):
        default = getattr(AgentSettings(), field.name)
        shown = "[below](#a-policy)" if isinstance(default, Policy) else _default(field.name, default)
        key = field.name.replace("_", "-")
        rows.append(
            f"| `{key}`<br>`EXPEDITED_{field.name.upper()}` | {flags.get(field.name, '-')} | {_cell(ACCEPTED[field.name])}"
            f" | {shown} | {meaning[field.name]} |"
        )
    return "\n".join(
        [
            "---",
            "hide: [toc]",  # room for five columns
            "---",
            "# Configuration",
            "",
            _MADE,
            "",
            "Flags of `expedited run` override environment variables, which override the file (`--config`, `EXPEDITED_CONFIG`, else",
            "/etc/expedited/config.yaml if it is there), which overrides the defaults. An unknown key is an error that names the",
            "nearest one; nothing is started then.",
            "",
            "In variables, `EXPEDITED_STATE_ROOTS` is a list with commas, and `EXPEDITED_POLICY` and `EXPEDITED_NAMESPACES` are JSON:",
            '`{"batch": {"page-cache": "drop"}}`.',
            "",
            "| key, variable | flag | takes | default | what it is |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## A policy",
            "",
            "The keys below `policy`, and below `namespaces.NAME` for the pods of one Kubernetes namespace; in a variable",
            "with two underscores: `EXPEDITED_POLICY__MODE`.",
            "",
            "| key | flag | takes | default | what it does |",
            "|---|---|---|---|---|",
            *(f"| `{name}` | {flags.get(name.replace('-', '_'), '-')} | {_term(name)} |" for name in TERMS),
            "",
            "A file for a first look:",
            "",
            "    policy:",
            "      mode: observe",
            "    namespaces:",
            "      batch:",
            "        mode: strike",
            "        page-cache: drop",
            "",
        ]
    )


def _flags() -> dict[str, str]:
    """The flag of `expedited run` for each key that has one, by the name of the setting or the policy's term.

    A flag is called as its key is, but for the unit or the plural at the key's end.
    """
    names = [*(field.name for field in fields(AgentSettings)), *(name.replace("-", "_") for name in TERMS)]
    found = {}
    for parameter in typer.main.get_command(app).commands["run"].params:
        for name in names:
            if re.fullmatch(rf"{parameter.name}(s|_seconds|_bytes)?", name):
                found[name] = f'<code class="whole">{parameter.opts[0]}</code>'
    return found


def commands() -> str:
    """Every command of the two programs with its arguments and options."""
    lines = [
        "# Commands",
        "",
        _MADE,
        "",
        "Exit code 0: done; 2: the command line or the configuration is wrong; 1: it could not be done (`kill`: something was still there at",
        "the deadline, or a part of the pod could not be struck; `status`: the striker is not well; `doctor`: the main job can't work here); 130:",
        "Ctrl-C.",
        "",
        "With `--json`, one object: `status` a `Status`; `top` `containers` (a list of `Container`) and `stops`; `kill` `stops` (a list of",
        "`Stop`); `stops` one `Stop` a line. These are the messages of proto/v1/expedited.proto, with its names, with integers as numbers, and",
        "null for what is not known. `doctor`: `works`, and `findings` (each with `area`, `name`, `level`, `found`, `costs`, `remedy`). `bench`: times",
        "in microseconds, and `within_target`. `kubectl expedited -o json`: one object a line, each with its `node`.",
        "",
        "Where an option has no default here, the [configuration](configuration.md) says what holds.",
        "[`kubectl expedited`](#kubectl-expedited) asks all nodes of a cluster at once.",
        "",
    ]
    waiting = [(name, typer.main.get_command(program)) for name, program in PROGRAMS.items()]
    while waiting:
        path, command = waiting.pop(0)
        lines += [f"## {path}", "", " ".join((command.help or "").split()), ""]
        rows = []
        for parameter in command.params:
            if getattr(parameter, "hidden", False) or parameter.name == "help":
                continue
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
            said = parameter.default not in (None, False, ())
            default = _default(parameter.name or "", parameter.default) if said else ""
            rows.append((", ".join(f"`{name}`" for name in names), default, _cell(parameter.help or "")))
        if any(default for _, default, _ in rows):
            lines += ["| option | default | what it does |", "|---|---|---|"]
            lines += [*(f"| {option} | {default} | {does} |" for option, default, does in rows), ""]
        elif rows:
            lines += [
                "| option | what it does |",
                "|---|---|",
                *(f"| {option} | {does} |" for option, _, does in rows),
                "",
            ]
        subordinate = getattr(command, "commands", {}).items()
        waiting[:0] = [(f"{path} {name}", each) for name, each in subordinate if not each.hidden]
    return "\n".join(lines)


def api() -> str:
    """The control API: its calls and messages, with the comments of the .proto file."""
    lines = ["# Control API", ""]
    remark: list[str] = []
    for line in _API.read_text().splitlines():
        text = line.strip()
        if text.startswith("//"):
            remark.append(text.removeprefix("//").strip())
            continue
        said = " ".join(remark)
        if text.startswith("syntax"):
            lines += [said, ""]
        elif block := re.match(r"(service|message) (\w+) \{", text):
            lines += ["", f"## {block[2]}", "", said, ""]
            if not text.endswith("}"):  # it has something in it
                lines += _API_HEADS[block[1]]
        elif call := re.match(r"rpc (\w+)\((.+?)\) returns \((.+?)\)", text):
            lines.append(f"| `{call[1]}` | {call[2]} | {call[3]} | {_cell(said)} |")
        elif field := re.match(r"(.+) (\w+) = \d+;", text):
            lines.append(f"| `{field[2]}` | {_cell(field[1])} | {_cell(said)} |")
        remark = []
    return "\n".join([*lines, ""])


def findings() -> str:
    """What `expedited doctor` looks at: what it costs where it is missing, and how to get it."""
    lines = [
        "",
        "## What doctor looks at",
        "",
        "As found on the machine that built this page: a line may be missing where a feature is, and numbers are that machine's.",
        "",
    ]
    area = None
    for finding in examine(AgentSettings()):
        if finding.area is not area:
            area = finding.area
            lines += [
                f"\n### {area.value[0].upper()}{area.value[1:]}\n",
                "| what | without it | how to get it |",
                "|---|---|---|",
            ]
        lines.append(f"| {_cell(finding.name)} | {_cell(finding.costs)} | {_cell(finding.remedy)} |")
    return "\n".join([*lines, ""])


def kernel() -> str:
    """What lies beside the patches; its links into the checkout as plain names, and a | in code as Python's Markdown has it."""

    def plain(link: re.Match[str]) -> str:
        return f"`{os.path.normpath(f'deploy/kernel/{link[1]}')}`"

    text = re.sub(r"\[[^]]+\]\((?!\w+:)([^)#]+)[^)]*\)", plain, _KERNEL.read_text())
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace("\\|", "|"), text)


def _term(name: str) -> str:
    """What a term of a policy takes, its default and its meaning, as cells."""
    term = TERMS[name]
    return f"{_cell(term.accepted)} | {_default(term.field, getattr(Policy(), term.field))} | {_cell(term.meaning)}"


def _attributes(kind: type) -> dict[str, str]:
    """The meaning of each field, from the docstring's section ``Attributes:``."""
    text = (kind.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: _cell(" ".join(words.replace("``", "`").split())) for name, words in found}


def _default(name: str, value: Any) -> str:
    """A default as one would write it, by the unit in the setting's name; empty where there is none."""
    if value in ("", {}):
        return ""
    if isinstance(value, bool):
        written = ("off", "on")[value] if name in Policy.__dataclass_fields__ else ("false", "true")[value]
    elif name.endswith("_bytes"):
        written = f"{value >> 20}Mi"
    elif name.endswith("_seconds"):
        written = f"{value:g}s" if value >= 1 else f"{1000 * value:g}ms"
    elif isinstance(value, (tuple, list)):
        written = ", ".join(value)
    else:
        written = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{written}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for each, text in committed().items():
        (directory / each).write_text(text, encoding="utf-8")

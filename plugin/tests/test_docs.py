"""The documentation's site: it builds without a warning, and its reference has everything that the code has."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from expedited.annotations import PREFIX, TERMS
from expedited.cli.app import app
from expedited.doctor import examine
from expedited.kubectl.app import app as kubectl_app
from expedited.metrics.table import TABLE
from expedited.pb.v1 import expedited_pb2
from expedited.settings import AgentSettings

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, made as `make docs` makes it."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=CHECKOUT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


def test_the_pages_in_the_checkout_are_what_the_code_makes_of_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, CHECKOUT / "docs/reference.py", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {"annotations.md", "commands.md", "configuration.md"}
    behind = [name for name, text in made.items() if (CHECKOUT / "docs" / name).read_text() != text]
    assert behind == [], "uv run --no-sync python docs/reference.py"


def test_every_link_in_the_checkout_leads_somewhere() -> None:
    folders = (CHECKOUT / name for name in ("docs", "deploy", "e2e"))
    pages = [*CHECKOUT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text())]
    assert links
    assert [(str(page), link) for page, link in links if not (page.parent / link).exists()] == []


def words(site: Path, page: str) -> str:
    """What a reader sees of a page."""
    return html.unescape(re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text()))


def test_every_annotation_is_in_the_reference(site: Path) -> None:
    page = words(site, "annotations")
    assert [name for name in TERMS if f"{PREFIX}{name}" not in page] == []


def test_every_key_is_in_the_reference_with_its_variable(site: Path) -> None:
    page = words(site, "configuration")
    names = [field.name for field in fields(AgentSettings)]
    assert [name for name in names if name.replace("_", "-") not in page] == []
    assert [name for name in names if f"EXPEDITED_{name.upper()}" not in page] == []


def test_a_flag_in_the_reference_sets_the_key_beside_it(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", (site / "configuration" / "index.html").read_text(), re.DOTALL)
    flags = {}
    for row in rows:
        codes = re.findall(r"<code[^>]*>(.*?)</code>", row)
        flags |= {code: codes[0] for code in codes if code.startswith("--")}
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    assert {each.opts[0] for each in run.params} - {"--config"} == set(flags)
    told: list[dict[str, object]] = []

    def load(_: object, overrides: dict[str, object]) -> None:
        told.append(overrides)
        raise typer.Exit

    monkeypatch.setattr("expedited.config.load", load)
    for flag, key in flags.items():
        (option,) = (each for each in run.params if each.opts[0] == flag)
        CliRunner().invoke(app, ["run", flag, *([] if getattr(option, "is_flag", False) else ["x"])])
        policy = told[-1].pop("policy")
        said = {name: value for part in (told[-1], policy) for name, value in part.items() if value}  # type: ignore[attr-defined]
        assert list(said) == [key], flag


def test_every_metric_is_in_the_reference(site: Path) -> None:
    page = words(site, "metrics")
    assert [metric.name for metric in TABLE if metric.name not in page] == []


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = words(site, "commands")
    missing = []
    waiting = [("expedited", typer.main.get_command(app)), ("kubectl expedited", typer.main.get_command(kubectl_app))]
    while waiting:
        path, command = waiting.pop()
        subordinate = getattr(command, "commands", {}).items()
        waiting += [(f"{path} {name}", each) for name, each in subordinate if not each.hidden]
        shown = [option for each in command.params if not getattr(each, "hidden", False) for option in each.opts]
        section = page.partition(f"\n{path}¶")[2].partition("¶")[0].lower()  # an argument's name is shown in capitals
        missing += [f"{path} {name}".strip() for name in ("", *shown) if not section or name not in section]
    assert missing == []


def test_every_call_and_field_of_the_api_is_in_the_reference(site: Path) -> None:
    page = words(site, "api")
    described = expedited_pb2.DESCRIPTOR
    calls = [call.name for service in described.services_by_name.values() for call in service.methods]
    messages = described.message_types_by_name.values()
    names = [name for message in messages for name in (message.name, *message.fields_by_name)]
    assert calls
    assert [name for name in calls + names if not re.search(rf"\b{name}\b", page)] == []


@pytest.mark.parametrize("page", ["annotations", "api", "commands", "configuration", "troubleshooting"])
def test_nothing_in_the_reference_is_without_its_meaning(site: Path, page: str) -> None:
    cells = re.findall(r"<tr>(.*?)</tr>", (site / page / "index.html").read_text(), re.DOTALL)
    assert cells
    assert [row for row in cells if re.search(r"<td>\s*</td>\s*$", row)] == []


def test_everything_that_doctor_looks_at_is_in_the_troubleshooting(site: Path) -> None:
    page = words(site, "troubleshooting")
    findings = examine(AgentSettings())
    assert findings
    assert [finding.name for finding in findings if finding.name not in page or finding.remedy not in page] == []


def test_every_page_and_picture_that_is_named_is_there(site: Path) -> None:
    missing = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are from the site's root
            continue
        for link in re.findall(r'(?:href|src)="([^"#:?]+)["#?]', page.read_text()):  # with a colon: elsewhere
            target = (page.parent / link).resolve()
            if not (target.is_file() or (target / "index.html").is_file()):
                missing.append((str(page.relative_to(site)), link))
    assert missing == []

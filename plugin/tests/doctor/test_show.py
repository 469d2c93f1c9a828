from __future__ import annotations

import io
import json
from typing import cast

import pytest
from rich.console import Console

from expedited.cli.doctor import run_doctor, show, to_plain
from expedited.doctor import Area, Finding, Level, examine, works
from expedited.settings import AgentSettings

_MISSING = Finding(Area.KERNEL, "missing", "not there", Level.DEGRADED, "it costs much", "buy it")
_THERE = Finding(Area.KERNEL, "present", "there", Level.OK, "it would cost much", "have it")


def _shown(findings: list[Finding], *, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        show(findings, Console(file=file, width=width))
        file.flush()
        return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_the_terminal_and_loses_no_word(settings: AgentSettings, width: int) -> None:
    findings = examine(settings)
    text = _shown(list(findings), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    letters = "".join(text.split())
    for finding in findings:
        assert finding.name in text
        if finding.level is not Level.OK:
            for part in finding.costs.split():
                assert part in letters


def test_what_is_there_takes_one_line_and_what_is_missing_says_what_it_costs_and_how_to_get_it() -> None:
    text = _shown([_THERE, _MISSING])
    assert "it would cost much" not in text
    assert [" ".join(line.split()) for line in text.splitlines()[1:-1]] == [
        "✔ ok present there",
        "! degraded missing not there",
        "costs it costs much",
        "to get it buy it",
    ]


@pytest.mark.parametrize("level", list(Level))
def test_a_terminal_with_ascii_only_gets_that(level: Level) -> None:
    finding = Finding(Area.KERNEL, "thing", "so so", level, "some", "somehow")
    assert level.value in _shown([finding], encoding="ascii")


def test_json_has_all_of_it(settings: AgentSettings, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_doctor(settings, json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["works"] is (code == 0)
    for finding in said["findings"]:
        assert set(finding) == {"area", "name", "found", "level", "costs", "remedy"}
    assert to_plain([_MISSING])["findings"][0]["remedy"] == "buy it"


def test_the_exit_code_is_whether_the_main_job_works(
    settings: AgentSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_doctor(settings, json=False)
    last = cast("str", capsys.readouterr().out.strip().splitlines()[-1])
    assert code == (0 if works(examine(settings)) else 1)
    assert ("can't work" in last) is (code == 1)

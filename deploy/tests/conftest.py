"""Renders the chart and the manifests with the real tools; `make test-deploy` puts them into .tools first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[1]
CHART = DEPLOY / "helm" / "expedited"
sys.path.insert(0, str(Path(__file__).parent))

Objects = dict[tuple[str, str], dict[str, Any]]


def run(
    *command: str | Path, check: bool = True, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """One of .tools' programs, or another; ``env`` is added to ours."""
    tools = DEPLOY.parent / ".tools" / "bin"
    path = f"{tools}:{os.environ['PATH']}:/usr/local/go/bin"
    environment = {**os.environ, **(env or {}), "PATH": path}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env=environment, **options
    )
    assert not check or done.returncode == 0, f"{command[0]}: {done.stderr}{done.stdout}"
    return done


def by_kind_and_name(text: str) -> Objects:
    documents = [each for each in yaml.safe_load_all(text) if each]
    objects = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    assert len(objects) == len(documents), "two objects of one name"
    return objects


@pytest.fixture(scope="session")
def template() -> Callable[..., str]:
    """``template("observe", "--set", ...)``: the chart with those of its ci/ values, as YAML."""

    def render(kind: str, *flags: str) -> str:
        values = CHART / "ci" / f"{kind}-values.yaml"
        # A helm that was built as a module takes itself to be for Kubernetes 1.20
        release = () if "--kube-version" in flags else ("--kube-version", "1.36")
        words = ("expedited", CHART, "--namespace", "expedited", "--values", values)
        done = run("helm", "template", *words, *release, *flags)
        return done.stdout

    return render


@pytest.fixture(scope="session")
def kustomize() -> Callable[[str], str]:
    """``kustomize("observe")``: that directory of the manifests, as YAML."""
    return lambda name: run("kustomize", "build", DEPLOY / "manifests" / name).stdout

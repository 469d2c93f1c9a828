"""Reads the configuration's YAML: keys that must be there once, and values as they were written.

YAML's own guesses are left out on purpose: to YAML 1.1 ``mode: off`` is a truth and ``1:30`` is ninety.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from expedited.errors import UsageError

__all__ = ["read_file"]


class _Loader(yaml.BaseLoader):
    """Every scalar is text; a key that comes twice is an error, as nobody can tell which one was meant."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name} is there twice", problem_mark=key.start_mark)
            seen.add(name if isinstance(name, str) else None)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, all of its scalars as text; an empty file is an empty mapping.

    Raises:
        UsageError: it can't be read, is no YAML, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, Loader=_Loader)  # makes nothing but str, list and dict
    except OSError as problem:
        raise UsageError(f"configuration file {path} can't be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise UsageError(f"configuration file {path} is not UTF-8 text") from problem
    except RecursionError as problem:
        raise UsageError(f"configuration file {path} has values within values without end") from problem
    except yaml.MarkedYAMLError as problem:
        line = f" line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise UsageError(f"configuration file {path}{line}: {problem.problem or problem.context}") from problem
    except yaml.YAMLError as problem:
        reason = " ".join(str(problem).split())
        raise UsageError(f"configuration file {path} is not YAML: {reason}") from problem
    if data in (None, ""):
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"configuration file {path} must hold keys and values, such as `run-dir: /run/expedited`")
    return data

"""The configuration: a YAML file, environment variables and flags become :class:`AgentSettings`.

Flags win over the environment, that over the file, and that over the defaults. Keys are written ``like-this`` in the
file, ``EXPEDITED_LIKE_THIS`` in the environment, with ``__`` between the levels. This module brings pydantic and YAML
with it: load it when there is something to read, not in the resident agent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from expedited.annotations import TERMS, nearest
from expedited.config_file import read_file
from expedited.errors import UsageError
from expedited.quantity import SIZE_ACCEPTED, parse_address, parse_seconds, parse_size
from expedited.settings import AgentSettings
from expedited.socket_path import refuse_if_too_long
from expedited.teardown.policy import Policy

__all__ = ["ACCEPTED", "DEFAULT_FILE", "file_in_use", "load", "variables_in_use"]

#: Read where no other is named; it need not exist.
DEFAULT_FILE = Path("/etc/expedited/config.yaml")

_ENV = "EXPEDITED_"
_ENV_FILE = "EXPEDITED_CONFIG"
# kubelet gives every pod the addresses of its namespace's services (kubernetes pkg/kubelet/envvars), and one of those
# may well be called expedited, or expedited-something: EXPEDITED_SERVICE_HOST, EXPEDITED_METRICS_PORT_9788_TCP_ADDR.
_ENV_OF_SERVICES = re.compile(r"EXPEDITED_(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)")

_DEFAULTS = AgentSettings()

# Of keys below it: a policy's, a namespace's policy's
_LEVELS = {"policy": 1, "namespaces": 2}

# A decision that takes longer than the supervisor waits for the gate would be the end of the gate.
_LONGEST_BUDGET_SECONDS = 1.0

#: What a value may be, for messages and the reference; TERMS has a policy's.
ACCEPTED = {
    "run_dir": "an absolute path",
    "state_roots": "a list of absolute paths (* may be the whole last part)",
    "nri_socket": "an absolute path, or nothing for no NRI",
    "containerd_socket": "an absolute path, or nothing for no containerd",
    "cri_namespace": "a name such as k8s.io",
    "metrics_address": "HOST:PORT, or nothing for no metrics",
    "policy": f"keys and values ({', '.join(TERMS)})",
    "namespaces": "a policy (keys and values) by namespace",
    "source": "auto, gate or observe",
    "budget_seconds": f"a time such as 50ms or 0.05, at most {_LONGEST_BUDGET_SECONDS:g} s",
    "keep_striker": "true or false",
    "kubernetes": "auto, off or the path of a kubeconfig",
    "node_name": "the node's name in Kubernetes, or nothing for the host's",
    "event_min_size_bytes": SIZE_ACCEPTED,
    "node_condition": "true or false",
    "log_level": "debug, info, warning or error",
    "log_format": "auto, console or json",
}


def _term(name: str) -> BeforeValidator:
    """Reads a policy's value as an annotation would: one vocabulary for both."""
    return BeforeValidator(lambda value: TERMS[name].parse(_text(value)))


def _text(value: object) -> str:
    """What would have been written for a value that a flag or JSON made a number or a truth of."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_scheme(value: object) -> object:
    return value.removeprefix("unix://") if isinstance(value, str) else value


def _listed(value: object) -> object:
    return [path.strip() for path in value.split(",")] if isinstance(value, str) else value


def _address(value: str) -> str:
    if value:
        parse_address(value)
    return value


_NODE_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"  # RFC 1123, as Kubernetes wants it
_Path = Annotated[str, Field(pattern=r"^/[^\x00\n]*$")]
_StateRoot = Annotated[str, Field(pattern=r"^(/[^\x00\n*]*|(/[^\x00\n*]+)?/\*)$")]
_Socket = Annotated[str, BeforeValidator(_without_scheme), Field(pattern=r"^(/[^\x00\n]*)?$")]
_Budget = Annotated[
    float, BeforeValidator(lambda value: parse_seconds(_text(value))), Field(le=_LONGEST_BUDGET_SECONDS)
]


class _PolicyModel(BaseModel):
    """A policy as it is written; what is left out is for another to say."""

    model_config = ConfigDict(extra="forbid")

    mode: Annotated[Any, _term("mode")] = None
    page_cache: Annotated[Any, _term("page-cache")] = None
    boost: Annotated[Any, _term("boost")] = None
    min_size: Annotated[Any, _term("min-size")] = None
    order: Annotated[Any, _term("order")] = None
    deadline: Annotated[Any, _term("deadline")] = None

    def over(self, base: Policy) -> Policy:
        """``base`` with what is said here in place of what it says."""
        said = {TERMS[name.replace("_", "-")].field: getattr(self, name) for name in self.model_fields_set}
        return Policy(**{name: said.get(name, getattr(base, name)) for name in Policy.__dataclass_fields__})


class _Model(BaseSettings):
    """The configuration as it is written, before it becomes :class:`AgentSettings`."""

    model_config = SettingsConfigDict(
        env_prefix=_ENV, env_nested_delimiter="__", extra="forbid", validate_default=False
    )

    run_dir: _Path = _DEFAULTS.run_dir
    state_roots: Annotated[tuple[_StateRoot, ...], NoDecode, BeforeValidator(_listed)] = _DEFAULTS.state_roots
    nri_socket: _Socket = _DEFAULTS.nri_socket
    containerd_socket: _Socket = _DEFAULTS.containerd_socket
    cri_namespace: Annotated[str, Field(min_length=1)] = _DEFAULTS.cri_namespace
    metrics_address: Annotated[str, AfterValidator(_address)] = _DEFAULTS.metrics_address
    policy: _PolicyModel = Field(default_factory=_PolicyModel)
    namespaces: dict[str, _PolicyModel] = Field(default_factory=dict)
    source: Literal["auto", "gate", "observe"] = "auto"
    budget_seconds: _Budget = _DEFAULTS.budget_seconds
    keep_striker: bool = _DEFAULTS.keep_striker
    kubernetes: Annotated[str, Field(pattern=r"^(auto|off|/[^\x00\n]*)$")] = _DEFAULTS.kubernetes
    # A pod is told by the downward API, mostly under this name
    node_name: Annotated[str, Field(pattern=_NODE_NAME)] = Field(
        default_factory=lambda: os.environ.get("NODE_NAME", "")
    )
    event_min_size_bytes: Annotated[int, BeforeValidator(lambda value: parse_size(_text(value)))] = (
        _DEFAULTS.event_min_size_bytes
    )
    node_condition: bool = _DEFAULTS.node_condition
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    def settings(self) -> AgentSettings:
        """The same, as the agent carries it."""
        policy = self.policy.over(_DEFAULTS.policy)
        said = {name: getattr(self, name) for name in _Model.model_fields}
        said["policy"] = policy
        said["namespaces"] = {name: partly.over(policy) for name, partly in self.namespaces.items()}
        return AgentSettings(**said)


class _Environment(EnvSettingsSource):
    """The environment's variables; JSON in one may have its keys spelled as the file has them."""

    def __call__(self) -> dict[str, Any]:
        return _spelled(super().__call__(), "environment")


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> AgentSettings:
    """Read the configuration.

    Args:
        path: The YAML file; None: the one that ``EXPEDITED_CONFIG`` names, else :data:`DEFAULT_FILE` if it is there.
        overrides: What the flags said, with the file's keys (a policy's below ``policy``); None stands for not said.

    Raises:
        UsageError: a key or a value is wrong, or the file that was named can't be read.
    """
    named = _named(path)
    origin = named or DEFAULT_FILE
    file = _spelled(read_file(origin), str(origin)) if named or _is_there(origin) else {}
    flags = _spelled(_said(overrides or {}), "flags")
    _refuse_unknown_variables()

    class Loaded(_Model):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (InitSettingsSource(settings_cls, flags), _Environment(settings_cls))
            return (*sources, InitSettingsSource(settings_cls, file))

    try:
        settings = Loaded().settings()
        for what in ("nri_socket", "containerd_socket"):
            refuse_if_too_long(getattr(settings, what), what.replace("_", "-"))
        return settings
    except RecursionError as problem:
        raise UsageError("environment: a variable has values within values without end") from problem
    except SettingsError as problem:
        name = re.search(r'field "(\w+)"', str(problem))
        variable = f"{_ENV}{name[1].upper()}" if name else "the environment"
        raise UsageError(f"{variable} is not JSON of {ACCEPTED.get(name[1] if name else '', 'its kind')}") from problem
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        keys = [part for part in first["loc"] if isinstance(part, str)]
        raise UsageError(_wrong_value(keys, first["input"], origin, flags)) from problem


def file_in_use(path: Path | None) -> Path:
    """The configuration file that :func:`load` reads with this ``path``, if it is there."""
    return _named(path) or DEFAULT_FILE


def variables_in_use() -> list[str]:
    """The environment's variables that are meant for the agent, but for the one that names the file."""
    ours = (name for name in os.environ if name.upper().startswith(_ENV))
    return [name for name in ours if name.upper() != _ENV_FILE and not _ENV_OF_SERVICES.fullmatch(name.upper())]


def _named(path: Path | None) -> Path | None:
    return path or (Path(os.environ[_ENV_FILE]) if os.environ.get(_ENV_FILE) else None)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as problem:
        raise UsageError(f"{path} is closed to this user: ask as root, or name a file by {_ENV_FILE}") from problem


def _said(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None, on every level."""
    return {
        key: _said(value) if isinstance(value, Mapping) else value
        for key, value in overrides.items()
        if value is not None
    }


def _spelled(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same with keys as the model has them.

    Raises:
        UsageError: a key is none of the model's.
    """
    spelled = _keys(data, [*_Model.model_fields], where, "")
    if "policy" in spelled:
        spelled["policy"] = _policy_keys(spelled["policy"], where, "policy.")
    namespaces = spelled.get("namespaces")
    if namespaces == "":  # a key with nothing after it
        spelled["namespaces"] = {}
    elif isinstance(namespaces, dict):
        spelled["namespaces"] = {
            name: _policy_keys(policy, where, f"namespaces.{name}.") for name, policy in namespaces.items()
        }
    return spelled


def _policy_keys(policy: object, where: str, prefix: str) -> object:
    if policy == "":
        return {}
    return _keys(policy, [*_PolicyModel.model_fields], where, prefix) if isinstance(policy, dict) else policy


def _keys(data: Mapping[str, Any], known: list[str], where: str, prefix: str) -> dict[str, Any]:
    spelled: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        written = [name.replace("_", "-") for name in known]
        if name not in known:
            hint = nearest(str(key), written) or f"; there are {', '.join(written)}"
            raise UsageError(f"{where}: there is no key {prefix}{key}{hint}")
        if name in spelled:
            raise UsageError(f"{where}: the key {prefix}{key} is there twice")
        spelled[name] = value
    return spelled


def _refuse_unknown_variables() -> None:
    known = {f"{_ENV}{name.upper()}": name for name in _Model.model_fields}
    for variable in variables_in_use():
        name = variable.upper()
        outer, *levels = name.split("__")
        if outer not in known or len(levels) > _LEVELS.get(known[outer], 0):
            raise UsageError(f"environment: there is no variable {variable}{nearest(name, known)}")


def _wrong_value(keys: list[str], value: object, origin: Path, flags: Mapping[str, Any]) -> str:
    """One line about one wrong value: where it was written, what it may be, what it is."""
    depth_of_terms = {"policy": 2, "namespaces": 3}.get(keys[0])
    if len(keys) == depth_of_terms:
        term = TERMS[keys[-1].replace("_", "-")]
        accepted, words = term.accepted, term.words
    else:
        name = "policy" if len(keys) > 1 else keys[0]
        accepted, words = ACCEPTED[name], _words(name)
    key = ".".join(keys).replace("_", "-")
    where = f"{origin}: {key}"
    if _is_in(flags, keys):
        where = _flag(keys[-1])
    else:
        variables = {name.upper(): name for name in os.environ}
        for depth in range(len(keys), 0, -1):  # its own variable, or JSON in that of a level above
            name = f"{_ENV}{'__'.join(keys[:depth]).upper()}"
            if name in variables:
                where = f"environment: {variables[name]}"
                break
    return f"{where} takes {accepted}, not {value!r}{nearest(str(value), words)}"


def _words(name: str) -> tuple[str, ...]:
    """The words that a setting takes, where it takes nothing else."""
    kind = _Model.model_fields[name].annotation
    return ("true", "false") if kind is bool else tuple(map(str, get_args(kind))) if "Literal" in str(kind) else ()


def _flag(key: str) -> str:
    """The flag of `expedited run` for this key: called as that is, but for the unit or the plural at its end."""
    name = key.removesuffix("_seconds").removesuffix("_bytes").replace("_", "-")
    return f"--{name.removesuffix('s') if key == 'state_roots' else name}"


def _is_in(data: Mapping[str, Any], keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True

"""The agents of a cluster, and commands that are run in their pods, as `kubectl exec` runs them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expedited.errors import ExpeditedError, UsageError

__all__ = ["Agent", "Answer", "Cluster"]

# The chart and the manifests give it to the agent's pods
_SELECTOR = "app.kubernetes.io/name=expedited"
_AT_ONCE = 32
_LIST_SECONDS = 20.0
_CHANNEL_OUT, _CHANNEL_ERR, _CHANNEL_STATUS = 1, 2, 3  # kubernetes apimachinery remotecommand


@dataclass(frozen=True, slots=True)
class Agent:
    """One node's agent.

    Attributes:
        problem: Why it can't be asked; empty: it can.
    """

    node: str
    namespace: str
    pod: str
    container: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in one agent's pod said.

    Attributes:
        objects: Each line of its output, as JSON; empty where it failed.
        problem: In one line, why there is no answer; empty: there is.
    """

    node: str
    objects: tuple[dict[str, Any], ...] = ()
    problem: str = ""


class Cluster:
    """One cluster, as kubectl would find it.

    Args:
        kubeconfig: A file; empty: as kubectl looks for it (KUBECONFIG, ~/.kube/config), else the pod's own credentials.
        context: Of that file; empty: the current one.
        timeout_seconds: The longest to wait for one node.

    Raises:
        UsageError: there is no such cluster in the configuration.
        ExpeditedError: the `kubernetes` package is not installed.
    """

    def __init__(self, kubeconfig: str = "", context: str = "", timeout_seconds: float = 30.0) -> None:
        try:
            from kubernetes import client
        except ImportError as error:
            raise ExpeditedError(
                "this needs the kubernetes package: in a checkout, pip install '.[kubectl]'"
            ) from error
        self._client: Any = client
        self._timeout_seconds = timeout_seconds
        self._configuration = self._client.Configuration()
        #: Where pods are that are named without a namespace.
        self.namespace = "default"
        self._load(kubeconfig, context)
        self._configuration.retries = False  # a server that is not there is told at once

    def _load(self, kubeconfig: str, context: str) -> None:
        config: Any = importlib.import_module("kubernetes.config")
        damaged = (importlib.import_module("yaml").YAMLError, LookupError, TypeError, AttributeError, RecursionError)
        try:
            self._load_file(config, kubeconfig, context)
        except (config.ConfigException, OSError, ValueError, *damaged) as error:
            if kubeconfig and not Path(kubeconfig).is_file():
                raise UsageError(f"no cluster: there is no file {kubeconfig}") from error
            if kubeconfig or context:
                file = f"{kubeconfig}: " if kubeconfig else ""
                why = "this is no kubeconfig" if isinstance(error, damaged) else _line(error)
                raise UsageError(f"no cluster: {file}{why}; see `kubectl config get-contexts`") from error
            try:
                config.load_incluster_config(self._configuration)
            except config.ConfigException:
                raise UsageError(f"no cluster: {_line(error)}; see `kubectl config get-contexts`") from error

    def _load_file(self, config: Any, kubeconfig: str, context: str) -> None:
        named = {"config_file": kubeconfig or None, "context": context or None}
        config.load_kube_config(client_configuration=self._configuration, **named)
        contexts, active = config.list_kube_config_contexts(kubeconfig or None)
        chosen = next((each for each in contexts if each["name"] == context), active)
        self.namespace = chosen["context"].get("namespace") or "default"

    def agents(self, *, node: str = "", namespace: str = "") -> list[Agent]:
        """The agents' pods, sorted by node.

        Args:
            node: Only that node's.
            namespace: Where they are; empty: anywhere.

        Raises:
            ExpeditedError: there is none, or the API server can't be asked.
        """
        selected: dict[str, Any] = {"label_selector": _SELECTOR, "_request_timeout": _LIST_SECONDS}
        if node:
            selected["field_selector"] = f"spec.nodeName={node}"
        with self._api("list the agents' pods") as api:
            if namespace:
                pods = api.list_namespaced_pod(namespace, **selected).items
            else:
                pods = api.list_pod_for_all_namespaces(**selected).items
        found = sorted((_agent(pod) for pod in pods if pod.spec.node_name), key=lambda agent: agent.node)
        if not found:
            where = f" on node {node}" if node else ""
            raise ExpeditedError(f"no agent{where}: no pod has the label {_SELECTOR}; see `kubectl get nodes,ds -A`")
        return found

    def node_of(self, namespace: str, pod: str) -> str:
        """The node of a pod that is still there; empty where it is not.

        Raises:
            ExpeditedError: the API server can't be asked.
        """
        try:
            with self._api(f"look for {pod}") as api:
                found = api.read_namespaced_pod(pod, namespace, _request_timeout=_LIST_SECONDS)
        except _NotThere:
            return ""
        return str(found.spec.node_name or "")

    def ask_all(self, agents: Sequence[Agent], command: Sequence[str]) -> list[Answer]:
        """Run a command in every agent's pod, at once; the answers in the agents' order."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda agent: self._ask(agent, command), agents))

    def _ask(self, agent: Agent, command: Sequence[str]) -> Answer:
        if agent.problem:
            return Answer(agent.node, problem=agent.problem)
        try:
            # An API of its own for each thread: stream() changes it for the time of the call
            with self._api(f"ask {agent.pod}") as api:
                out, err = self._exec(api, agent, command)
            objects = tuple(json.loads(line) for line in out.decode().splitlines())
        except ExpeditedError as error:
            return Answer(agent.node, problem=str(error))
        except ValueError:
            return Answer(agent.node, problem=f"{agent.pod} gave an answer that is no JSON: is it another version?")
        said = _last_line(err)
        if not objects and said:
            return Answer(agent.node, problem=said.removeprefix("expedited: "))
        return Answer(agent.node, objects)

    def _exec(self, api: Any, agent: Agent, command: Sequence[str]) -> tuple[bytes, bytes]:
        from kubernetes.stream import stream

        connection = stream(
            api.connect_get_namespaced_pod_exec,
            agent.pod,
            agent.namespace,
            container=agent.container,
            command=list(command),
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            binary=True,
            _preload_content=False,
            _request_timeout=self._timeout_seconds,
        )
        try:
            connection.run_forever(self._timeout_seconds)
            if connection.is_open():
                raise ExpeditedError(f"{agent.pod} did not answer within {self._timeout_seconds:g} s")
            out, err, status = (
                connection.read_channel(channel) for channel in (_CHANNEL_OUT, _CHANNEL_ERR, _CHANNEL_STATUS)
            )
        finally:
            connection.sock.shutdown()  # close() leaves the socket open where the server was the first to close
        problem = _why_not(status)
        if problem and not out and not err:
            raise ExpeditedError(f"{agent.pod} could not be asked: {problem}")
        return out, err

    @contextmanager
    def _api(self, what: str) -> Iterator[Any]:
        """The API, to do ``what``; the many errors of the kubernetes package become one line about that."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError
        from websocket import WebSocketException

        connections = self._client.ApiClient(self._configuration)
        try:
            yield self._client.CoreV1Api(connections)
        except ApiException as error:
            if error.status == 404:
                raise _NotThere(f"could not {what}: it is not there") from error
            raise ExpeditedError(f"could not {what}: {_refusal(error)}") from error
        except (HTTPError, WebSocketException, OSError) as error:
            raise ExpeditedError(
                f"could not {what}: no answer from {self._configuration.host} ({_line(error)})"
            ) from error
        finally:
            connections.rest_client.pool_manager.clear()


class _NotThere(ExpeditedError):
    """404."""


def _agent(pod: Any) -> Agent:
    conditions = {each.type: each.status for each in pod.status.conditions or ()}
    problem = ""
    if pod.metadata.deletion_timestamp:
        problem = f"{pod.metadata.name} is being replaced"
    elif pod.status.phase != "Running":
        problem = f"{pod.metadata.name} is {pod.status.phase}: see `kubectl -n {pod.metadata.namespace} describe pod`"
    elif conditions.get("ContainersReady") == "False" and not _has_started(pod):
        problem = (
            f"{pod.metadata.name} does not run: see `kubectl -n {pod.metadata.namespace} logs {pod.metadata.name}`"
        )
    names = [container.name for container in pod.spec.containers]
    container = "agent" if "agent" in names else names[0]
    return Agent(pod.spec.node_name, pod.metadata.namespace, pod.metadata.name, container, problem)


def _has_started(pod: Any) -> bool:
    return any(each.state and each.state.running for each in pod.status.container_statuses or ())


def _refusal(error: Any) -> str:
    try:
        message = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        # An upgrade to a WebSocket that was refused: what is known stands in the reason
        message = error.reason
    return " ".join(str(message).split())[:300]


def _why_not(status: bytes) -> str:
    """From the Status that ends a command; empty: it ended well, perhaps with nothing to say."""
    try:
        said = json.loads(status)
        return "" if said["status"] == "Success" else str(said.get("message") or said["reason"])
    except (ValueError, TypeError, KeyError):
        return "its connection ended with no answer"


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

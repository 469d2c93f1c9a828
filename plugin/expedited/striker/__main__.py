"""``python -m expedited.striker``: the kill gate and its strikes, with no agent and no containerd API needed.

Usage: python -m expedited.striker [--run-dir DIR] [--state-root PATTERN]... [--policy JSON] [--budget SECONDS]
                                   [--hold-executions auto|on|off] [--source auto|gate|observe]
                                   [--log-format console|json|auto]
"""

from __future__ import annotations

import getopt
import sys

from expedited.striker.heartbeat import Heartbeat
from expedited.striker.log import Log
from expedited.striker.supervisor import supervise

_OPTIONS = ["run-dir=", "state-root=", "policy=", "budget=", "hold-executions=", "source=", "log-format=", "help"]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1:
        raise ValueError(f"--budget {text}: give seconds above 0 and up to 1")
    return seconds


def main(arguments: list[str]) -> int:
    """Parse, listen, supervise.

    Returns:
        0 after a SIGTERM, 1 when the gate can't work here, 2 for a wrong option.
    """
    try:
        options, rest = getopt.getopt(arguments, "h", _OPTIONS)
        if rest:
            raise getopt.GetoptError(f"unexpected argument {rest[0]}")
        chosen = {name.lstrip("-"): value for name, value in options}
        budget_seconds = _seconds(chosen.get("budget", "0.05"))
        for name, value in options:
            if name in ("--state-root", "--run-dir") and not value.startswith("/"):
                raise ValueError(f"{name} {value}: give a path that starts with /")
            if name == "--state-root" and "*" in value.removesuffix("/*"):
                raise ValueError(f"{name} {value}: * may be the whole last part, and nothing else")
        if chosen.get("hold-executions", "auto") not in ("auto", "on", "off"):
            raise ValueError(f"--hold-executions {chosen['hold-executions']}: give auto, on or off")
        if chosen.get("source", "auto") not in ("auto", "gate", "observe"):
            raise ValueError(f"--source {chosen['source']}: give auto, gate or observe")
        log_format = chosen.get("log-format", "console")
        if log_format not in ("console", "json", "auto"):
            raise ValueError(f"--log-format {log_format}: give console, json or auto")
    except (getopt.GetoptError, ValueError) as error:
        print(f"expedited.striker: {error}; see python -m expedited.striker --help", file=sys.stderr)
        return 2
    if "help" in chosen or "h" in chosen:
        print(__doc__)
        return 0
    log = Log.of_format(log_format)
    run_dir = chosen.get("run-dir", "/run/expedited")

    def gate(heartbeat: Heartbeat) -> int:
        # Only here, in the child: the supervisor stays as small as it was
        from expedited.striker.process import Options, run

        return run(
            Options(
                run_dir=run_dir,
                state_roots=tuple(value for name, value in options if name == "--state-root"),
                policy=chosen.get("policy", ""),
                budget_seconds=budget_seconds,
                hold_executions=chosen.get("hold-executions", "auto"),
                source=chosen.get("source", "auto"),
                log_format=log_format,
            ),
            heartbeat,
            log,
        )

    return supervise(gate, log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

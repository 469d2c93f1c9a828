"""``python -m expedited.agent SETTINGS``: the resident process. SETTINGS is :meth:`AgentSettings.to_json`'s line.

`expedited run` reads the configuration with libraries that would cost the resident agent ten megabytes, and then becomes
this process.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


def main(arguments: list[str]) -> int:
    """Run the agent.

    Returns:
        0 after it was told to stop; else the exit code of what was wrong.
    """
    from expedited.agent.priority import go_first

    go_first()  # before all the rest is loaded
    # structlog imports rich where it is there, for tracebacks that are not used here
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from expedited import log
    from expedited.agent.agent import run
    from expedited.errors import AlreadySaid, ExpeditedError
    from expedited.settings import AgentSettings

    if len(arguments) != 1:
        print("expedited.agent: start it with `expedited run`", file=sys.stderr)
        return 2
    settings = AgentSettings.from_json(arguments[0])
    log.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(run(settings))
    except AlreadySaid as error:
        return error.exit_code
    except ExpeditedError as error:
        return _say(str(error), error.exit_code)
    except Exception as error:  # one line, whatever it was; whoever keeps the agent starts it again
        return _say(f"a fault of its own: {type(error).__name__}: {error}", 1)
    return 0


def _say(what: str, code: int) -> int:
    with suppress(OSError):
        print(f"expedited: {what}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

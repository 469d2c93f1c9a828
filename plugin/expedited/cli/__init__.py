"""The command line: ``expedited run | kill | stops | top | status | doctor | demo | bench``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """The program ``expedited``: one line and an exit code for every error, never a traceback."""
    from expedited.errors import ExpeditedError

    try:
        from typer import TyperException

        from expedited.cli.app import app

        sys.exit(app(prog_name="expedited", standalone_mode=False))
    except KeyboardInterrupt:  # before the others, which name what may not have been loaded yet
        sys.exit(130)  # what a shell makes of a SIGINT
    except TyperException as error:
        # Of the command line itself: an option that there is not, a value that is none. typer would draw a box
        message = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
        if message:  # else it was called with no arguments, and has shown its help
            where = getattr(getattr(error, "ctx", None), "command_path", "expedited")
            print(f"expedited: {message.rstrip('.')}; see `{where} --help`", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    except ExpeditedError as error:
        print(f"expedited: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`); what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

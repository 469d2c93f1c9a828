"""The command line: ``expedited run | kill | stops | top | status | doctor | demo | bench``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """The program ``expedited``: one line and an exit code for every error, never a traceback."""
    from expedited.errors import ExpeditedError

    try:
        from expedited.cli.app import app

        app(prog_name="expedited")
    except ExpeditedError as error:
        print(f"expedited: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell makes of a SIGINT
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`); what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

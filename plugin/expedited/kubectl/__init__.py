"""``kubectl expedited``: the command line's questions, asked of all nodes at once through the API server."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """The program ``kubectl-expedited``: one line and an exit code for every error, never a traceback."""
    from expedited.errors import ExpeditedError

    try:
        from expedited.kubectl.app import app

        app(prog_name="kubectl expedited")
    except ExpeditedError as error:
        print(f"kubectl expedited: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell makes of a SIGINT
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`); what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

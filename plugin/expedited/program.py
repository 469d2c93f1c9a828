"""A program of ours, as its caller sees it: one line and an exit code for every error, never a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["run_program"]


def run_program(name: str, load: Callable[[], Any]) -> None:
    """Run a typer application, and end this process.

    Args:
        name: As it is called, and says of itself.
        load: Gives the application; only here, as to load it takes longer than to press Ctrl-C.
    """
    _have_streams()
    from expedited.errors import ExpeditedError

    code = 0
    try:
        from typer import TyperException

        code = load()(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:  # before the others, which name what may not have been loaded yet
        sys.exit(130)  # what a shell makes of a SIGINT
    except TyperException as error:
        # Of the command line itself: an option that there is not, a value that is none. typer would draw a box
        message = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
        if message:  # else it was called with no arguments, and has shown its help
            where = getattr(getattr(error, "ctx", None), "command_path", name)
            print(f"{name}: {message.rstrip('.')}; see `{where} --help`", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    except ExpeditedError as error:
        print(f"{name}: {_in_one_line(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich and typer make a 1 of it
            _let_go_of_output()
            sys.exit(code)
        raise
    except OSError as error:
        _let_go_of_output()
        if isinstance(error, BrokenPipeError):  # whoever read us has seen enough (`| head`)
            sys.exit(code)
        print(f"{name}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        what = _in_one_line(f"{type(error).__name__}: {error}")
        print(f"{name}: a fault of its own, please report it: {what}", file=sys.stderr)
        sys.exit(1)


def _have_streams() -> None:
    """Whoever closed one has it go nowhere, and not to whatever is opened next; what a stream's encoding has not is shown as ?."""
    for descriptor, stream, how in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, stream) is None:
            with suppress(OSError):
                os.fstat(descriptor)
                continue
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: those below it are open by now
            setattr(sys, stream, os.fdopen(descriptor, how, closefd=False))
        elif how == "w" and isinstance(getattr(sys, stream), io.TextIOWrapper):
            getattr(sys, stream).reconfigure(errors="replace")


def _in_one_line(message: str) -> str:
    """With what no terminal shows as it is, of a name that was asked for, written out."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in message)


def _let_go_of_output() -> None:
    """What is still buffered goes nowhere, and not wrong a second time when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

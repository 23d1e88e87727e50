"""``dlc``: the verbs, and what an error looks like.

Exit codes: 0 done; 1 a check failed; 2 the input or the options are wrong, with one line on stderr that begins
``dlc: error:``. A traceback is printed only with ``-v``.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from dlc import __version__
from dlc.errors import DlcError

VERBS = ("compile", "run", "check", "bench", "quantize", "inspect", "explain", "targets", "doctor", "cache", "zoo")
_INTERRUPTED = 130  # what shells expect of a process that Ctrl-C ended


@dataclass
class State:
    """What a verb shares with the program around it."""

    verbose: bool = False


class Program(click.Group):
    """The group of all verbs: imports a verb when it is used, and prints every error as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of a first use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, from the module that has its name."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"dlc.cli.{cmd_name}"), cmd_name)
        return command

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run and exit with the code that the module's text promises."""
        state = State()
        extra.update(standalone_mode=False, obj=state)
        try:
            code = super().main(args, "dlc", **extra)  # also when run as a module or by a test
        except Exception as error:
            code = _report(error, state)
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, state: State) -> int:
    """Print `error` as it deserves and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return 2
    if isinstance(error, click.Abort):  # what click makes of Ctrl-C
        click.echo("dlc: interrupted", err=True)
        return _INTERRUPTED
    if state.verbose:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, DlcError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        hint = "" if state.verbose else "; run with -v"
        text = f"internal error: {type(error).__name__}: {error}{hint}"
    click.echo(f"dlc: error: {' '.join(text.split())}", err=True)
    return 2


def set_verbose(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    """Turn on tracebacks and the log; the callback of every ``-v``."""
    if value:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
        ctx.find_root().obj.verbose = True


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dlc", message="%(prog)s %(version)s")
@click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, is_eager=True, callback=set_verbose, help="Tracebacks, log."
)
def main() -> None:
    """A hardware-aware deep-learning compiler: ONNX in, one package out.

    \b
    dlc compile model.onnx -o model.dlc
    dlc check model.dlc --against model.onnx
    """


if __name__ == "__main__":
    main()

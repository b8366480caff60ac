"""The application that the commands belong to, and the one place where it ends."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import mixnas
from mixnas.cli.output import INTERRUPTED, say, warn
from mixnas.errors import MixnasError, Reported

USAGE = 2

app = typer.Typer(
    name="mixnas",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Find a vision network whose token mixers are searched, block by block, under a budget.

One supernet holds every architecture of a space; it is trained once, then searched with Optuna
and Ray Tune. Nothing over the budget is ever evaluated. The winner, its weights, every trial and
a report are kept in one folder, runs/NAME; the same command goes on with it after a stop.

```
mixnas search --budget 1.5GFLOPs      embedded digits, in minutes
mixnas search --budget 1.5GFLOPs --budget 20ms --data photos/
mixnas measure                        latency of the space on this device
mixnas spaces --budget 1.5GFLOPs      how many architectures fit
mixnas show NAME                      what a run found
mixnas compare NAME                   its winner beside published networks, trained alike
mixnas audit NAME                     how far its ranking can be trusted
mixnas pick NAME --budget 1.2GFLOPs   another budget from what it has learnt, in seconds
mixnas replay NAME                    front and winner again, from its log alone
```

**Budgets** are a number and a unit, and the unit names the cost: 1.5GFLOPs (multiply-adds of one
image; GMACs is the same), 20ms (latency of one image on the device; 20ms@cuda, 20ms@table:FILE
elsewhere), 200MB (peak memory of one inference), 10Mparams (size), 1.2-1.5GFLOPs (both ends).
Several budgets hold together.
""",
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"mixnas {mixnas.__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit: the console script ``mixnas``.

    Args:
        words: the arguments, by default those of the process.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, `mixnas spaces | head`: nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(
            words or ["--help"], prog_name="mixnas", standalone_mode=False, obj=words
        )
        return code if isinstance(code, int) else 0
    except Reported:
        return USAGE
    except MixnasError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # not typer's or click's own
            raise
        context = getattr(error, "ctx", None)
        return _fail(f"{error.format_message()}; see {_path(context)} --help")


def _path(context: typer.Context | None) -> str:
    return context.command_path if context is not None else "mixnas"


def _fail(message: str) -> int:
    """Write one line, whatever the message holds, and return the exit code."""
    warn("mixnas: " + " ".join(message.split()).replace(".;", ";"))
    return USAGE

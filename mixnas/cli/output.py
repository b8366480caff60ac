"""What a command writes: results on the standard output, progress on the standard error."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mixnas.run import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mixnas.jobs.settings import Listener

INTERRUPTED = 130
"""Exit code of a command that was stopped by Ctrl-C."""


def warn(line: str) -> None:
    """Write a line to the standard error."""
    sys.stderr.write(f"{line}\n")


def say(line: str) -> None:
    """Write a line to the standard output."""
    sys.stdout.write(f"{line}\n")


def say_json(data: Any) -> None:
    """Print plain data, for programs."""
    say(json.dumps(data, indent=1))  # ASCII: any terminal and any file name can take it


def say_table(renderable: "RenderableType") -> None:
    """Print a table, for people."""
    from mixnas.terminal import console

    console(sys.stdout).print(renderable)


@contextmanager
def following(
    context: typer.Context,
    *,
    results: bool,
    quiet: bool,
    keeps: bool = True,
    launched: bool = False,
) -> "Iterator[Listener]":
    """Follow a job: bars where the standard error is a terminal, else lines; then Ctrl-C.

    Args:
        context: of the command, whose words go on with an interrupted job.
        results: whether the plan is what was asked for, and goes to the standard output.
        quiet: whether to show nothing, but a plan that was asked for.
        keeps: whether an interrupted job keeps what it has done.
        launched: whether another process of ours tells the plan and the end.

    Raises:
        typer.Exit: with the code of an interrupted command, in place of KeyboardInterrupt.
    """
    from mixnas.terminal import Bars, Lines, Quiet, console, rows

    begun: list[str] = []

    def planned(plan: Mapping[str, Any]) -> None:
        begun.append(str(plan.get("run", "")))
        if not launched and (results or not quiet):
            console(sys.stdout if results else sys.stderr).print(rows(plan))

    listener: Listener = Lines(warn, planned)
    if quiet:
        listener = Quiet(planned)
    elif sys.stderr.isatty():
        listener = Bars(console(sys.stderr), planned)
    try:
        yield listener
    except KeyboardInterrupt:
        listener.end()
        if not launched:
            _interrupted(begun if keeps else [], context.obj or [])
        raise typer.Exit(INTERRUPTED) from None
    finally:
        listener.end()


def _interrupted(begun: Sequence[str], words: Sequence[str]) -> None:
    """Say what is kept of an interrupted job, and how to go on."""
    if not begun or not Path(begun[0]).exists():
        warn("mixnas: interrupted before the plan was made; the same command begins it again")
        return
    warn(f"mixnas: interrupted; what was done is kept in {begun[0]}. To go on where it stopped:")
    warn(f"  {shlex.join(['mixnas', *words])}")


def say_found(run: str | Run, runs: str, as_json: bool) -> None:
    """Print what a run found."""
    from mixnas.jobs.show import show as job

    found = job(run, runs)
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.found(found))

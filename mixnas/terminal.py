"""How a job is followed: progress bars on a terminal, plain lines everywhere else."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mixnas.jobs.settings import Silent, duration

UNITS = {
    "counting": "parts",
    "parts": "parts",
    "networks": "networks",
    "training": "steps",
    "search": "architectures",
    "finalists": "networks",
    "evaluations": "architectures",
    "asks": "asks",
    "front": "networks",
    "entrants": "networks",
    "scores": "networks",
    "rehearsal": "networks",
    "trainings": "trainings",
    "timing": "networks",
    "test": "images",
    "forms": "forms",
}
"""What each stage counts."""

UNBROKEN = 1000
"""Columns of a text that goes to a file or a pipe: there is no edge to break lines at."""

EVERY = 10.0
"""Seconds between two lines of plain progress."""

BRIEF = ("counting",)
"""Stages of a few seconds, which have a bar but no lines."""


def console(file: TextIO) -> Console:
    """Return a console that wraps and colours on a terminal, and does neither elsewhere."""
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(
        file=file, highlight=False, width=UNBROKEN, force_terminal=False, color_system=None
    )


Planned = Callable[[Mapping[str, Any]], None]
"""Takes a plan: label to text."""


class Quiet(Silent):
    """A listener that hands on the plan, and is silent otherwise."""

    def __init__(self, planned: Planned) -> None:
        self._planned = planned

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Hand on the plan."""
        self._planned(plan)


class Bars:
    """A listener that draws a bar for each stage, with its figures and the time left.

    Args:
        console: where to draw.
        planned: takes the plan.
    """

    def __init__(self, console: Console, planned: Planned) -> None:
        self.plan = planned
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Begin a bar."""
        self.end()
        self._progress = _bar(self._console)
        self._task = self._progress.add_task(
            escape(name), total=total, completed=done, unit=UNITS.get(name, ""), figures=""
        )
        self._progress.start()

    def advance(self, by: int, **figures: float | str) -> None:
        """Move the bar on."""
        if self._progress is not None:
            self._progress.update(self._task, advance=by, figures=describe(figures))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(text))

    def end(self) -> None:
        """Leave the bar as it stands; harmless when there is none."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Lines:
    """A listener that writes a line at each stage's start and end, and now and then between.

    Args:
        write: takes one line.
        planned: takes the plan.
        clock: seconds that only rise.
        every: seconds between two lines of one stage.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        planned: Planned,
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
    ) -> None:
        self.plan = planned
        self._write = write
        self._clock = clock
        self._every = every
        self._name = ""
        self._total = self._done = self._first = 0
        self._began = self._spoke = 0.0
        self._figures: dict[str, float | str] = {}

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Write that a stage begins."""
        self._name, self._total, self._done, self._first = name, total, done, done
        self._began = self._spoke = self._clock()
        self._figures = {}
        going = f", going on at {done}" if done else ""
        if name not in BRIEF:
            self._write(f"{name}: {total} {UNITS.get(name, 'steps')}{going}")

    def advance(self, by: int, **figures: float | str) -> None:
        """Count, and write a line if the last one is old."""
        self._done += by
        self._figures = figures
        now = self._clock()
        due = now - self._spoke >= self._every and self._name not in BRIEF
        if due and self._done < self._total:
            self._spoke = now
            self._write(f"{self._status()}, {duration(self._left(now))} left")

    def note(self, text: str) -> None:
        """Write the line."""
        self._write(text)

    def end(self) -> None:
        """Write where the stage stands and what it took; harmless when there is none."""
        if self._name and self._name not in BRIEF:
            self._write(f"{self._status()}, took {duration(self._clock() - self._began)}")
        self._name = ""

    def _status(self) -> str:
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        figures = f", {describe(self._figures)}" if self._figures else ""
        return f"{self._name}: {self._done}/{self._total}{share}{figures}"

    def _left(self, now: float) -> float:
        """Return the seconds left at the pace of this stage so far."""
        paced = max(1, self._done - self._first)
        return max(0, self._total - self._done) * (now - self._began) / paced


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", style="dim"),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
    )


def rows(plan: Mapping[str, Any]) -> Table:
    """Return a table of labels and texts, taken literally (no markup)."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in plan.items():
        table.add_row(Text(str(label)), Text(str(text)))
    return table


def describe(figures: Mapping[str, float | str]) -> str:
    """Return figures as ``loss 1.23, accuracy 91.2%``: shares of images in per cent."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_figure(name, value)}" for name, value in figures.items()
    )


def _figure(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1%}" if "accuracy" in name else f"{value:.4g}"

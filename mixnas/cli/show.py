"""`mixnas show`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import Folder, Json
from mixnas.cli.output import following, say_found, warn
from mixnas.remote import rooted


@app.command()
def show(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a run, or the path of its folder.")
    ],
    runs: Folder = "runs",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Follow a job that another process does, from its status file, to its end: "
            "stages, speed, time left, best so far. It waits for a job that has not begun to tell. "
            "Ctrl-C leaves; the job goes on.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a run found: winner, front, files; or how far it has come.

    ```
    mixnas show digits-default-1.5GFLOPs-seed0
    mixnas show digits-default-1.5GFLOPs-seed0 --follow
    ```
    """
    if follow:
        _follow(context, run, runs, quiet=as_json)
    say_found(run, runs, as_json)


def _follow(context: typer.Context, name: str, runs: str, *, quiet: bool) -> None:
    """Follow a job to its end, and say how it ended where it was no good end."""
    from mixnas.jobs.show import open_run
    from mixnas.jobs.status import follow

    run = open_run(name, rooted(runs))
    with following(context, results=False, quiet=quiet, keeps=False, launched=True) as listener:
        ended = follow(run, listener)
    if not ended:
        warn(f"mixnas: no job tells of itself in {run.path}; this is what is there")
    elif ended == "dead":
        warn("mixnas: the job's process has gone without a word; this is what it left")
    elif ended != "finished":
        warn(f"mixnas: the job has ended: {ended}")

"""`mixnas replay`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import Folder, Json, Quiet
from mixnas.cli.output import following, say_json, say_table

DIFFERS = 1
"""Exit code where something differs."""


@app.command()
def replay(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a search, or the path of its folder.")
    ],
    runs: Folder = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rebuild front, report and winner from a run's logs alone, and say if anything differs.

    ```
    mixnas replay digits-default-1.5GFLOPs-seed0
    ```

    No GPU, no data and no weights are needed. The sampler is asked again, too: with the same seed
    it must ask the same. What was rebuilt is kept in RUN/replay. The exit code is 1 if anything
    differs from the run's files.
    """
    with following(context, results=False, quiet=as_json or quiet, keeps=False) as listener:
        from mixnas.jobs.replay import replay as job

        found = job(run, runs=runs, listener=listener)
    if as_json:
        say_json(found)
    else:
        from mixnas import screen

        say_table(screen.replayed(found))
    if not found["same"]:
        raise typer.Exit(DIFFERS)

"""`mixnas show`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import Folder, Json
from mixnas.cli.output import say_found


@app.command()
def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a run, or the path of its folder.")
    ],
    runs: Folder = "runs",
    as_json: Json = False,
) -> None:
    """Show what a run found: winner, front, files; or how far it has come.

    ```
    mixnas show digits-default-1.5GFLOPs-seed0
    ```
    """
    say_found(run, runs, as_json)

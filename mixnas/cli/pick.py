"""`mixnas pick`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import RUN, Budget, Folder, Json, Quiet, budgets
from mixnas.cli.output import following, say_json, say_table


@app.command()
def pick(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Name of a search whose supernet is trained, or its folder's path."
        ),
    ],
    budget: Budget = None,
    time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the evaluations may take; what has begun by then is finished.",
            rich_help_panel=RUN,
        ),
    ] = "20s",
    runs: Folder = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer for another budget from what a run has learnt, in seconds, without training.

    ```
    mixnas pick digits-default-1.5GFLOPs-seed0 --budget 1.2GFLOPs
    ```

    The budget must lie inside what the supernet was trained for; of its limits, what is not given
    anew stays. The run's trials within the budget are known; the most promising of what else lies
    there are evaluated by the supernet's weights. The architecture and its weights are kept in
    RUN/picks, for mixnas retrain and mixnas export.
    """
    wanted = budgets(budget)
    with following(context, results=False, quiet=as_json or quiet, keeps=False) as listener:
        from mixnas.jobs.pick import pick as job

        found = job(run, wanted, time=time, runs=runs, listener=listener)
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.picked(found))

"""`mixnas compare`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import (
    RUN,
    TRAIN,
    AloneTrainers,
    AsTrained,
    Folder,
    Json,
    Quiet,
    maybe,
    names,
    whole,
)
from mixnas.cli.output import following, say, say_json, say_table
from mixnas.errors import InvalidOption
from mixnas.run import Run

BESIDE = "Who stands beside the winner"


@app.command()
def compare(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a finished run, or its folder's path.")
    ],
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="Who stands beside the winner: system (the five published ones), mixer (one "
            "mixer alone), control (identity, attention), random, timm, equal (random search by "
            "trainings alone, for the compute of supernet and search). Default: all but equal.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    random: Annotated[
        str,
        typer.Option(metavar="N", help="Random feasible networks.", rich_help_panel=BESIDE),
    ] = "3",
    timm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The network of timm. Default: the nearest in cost of well-known ones.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Trainings of each; more of them add to a comparison that is there.",
            rich_help_panel=TRAIN,
        ),
    ] = "3",
    epochs: AsTrained = None,
    workers: AloneTrainers = None,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of the comparison's folder, inside the run's.",
            rich_help_panel=RUN,
        ),
    ] = "compare",
    runs: Folder = "runs",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Stop after the plan: who takes part, time.", rich_help_panel=RUN
        ),
    ] = False,
    as_json: Json = False,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print the table in Markdown only.", rich_help_panel=RUN),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a run's winner and others of its cost from scratch, alike, and compare them.

    ```
    mixnas compare digits-default-1.5GFLOPs-seed0 --seeds 2
    ```

    Beside it stand the five published systems, scaled in width to the budget; networks of one
    mixer; random ones; one of timm. All have the same recipe, data and seeds, and are judged on
    images that chose nothing. Ctrl-C stops cleanly; the same command goes on where it was.
    """
    from mixnas.jobs.settings import at_least

    if as_json and markdown:
        raise InvalidOption("--json and --markdown together; give one of them")
    trainings, draws = whole("--seeds", seeds), whole("--random", random)
    passes, crew = maybe("--epochs", epochs), maybe("--workers", workers)
    at_least("--seeds", trainings, 1)
    at_least("--random", draws, 0)
    for option, number in (("--epochs", passes), ("--workers", crew)):
        if number is not None:
            at_least(option, number, 1)
    results = dry_run and not as_json
    with following(
        context, results=results, quiet=as_json or markdown or quiet, keeps=not dry_run
    ) as listener:
        from mixnas.jobs.compare import compare as job

        found = job(
            run,
            seeds=trainings,
            epochs=passes,
            random=draws,
            workers=crew,
            only=names("--only", only),
            timm=timm,
            name=name,
            runs=runs,
            dry_run=dry_run,
            listener=listener,
        )
    if isinstance(found, Run):
        _compared(found, as_json=as_json, markdown=markdown)
    elif as_json:
        say_json(found.to_dict())


def _compared(kept: Run, *, as_json: bool, markdown: bool) -> None:
    """Print what a comparison found."""
    from mixnas.jobs.compare import comparison

    summary = comparison(kept)
    if as_json:
        say_json(summary)
        return
    from mixnas import screen

    if markdown:
        say(screen.markdown(summary))
    else:
        say_table(screen.compared(summary))

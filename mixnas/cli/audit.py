"""`mixnas audit`."""

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
    whole,
)
from mixnas.cli.output import following, say_json, say_table
from mixnas.run import Run

DRAWN = "What is drawn"


@app.command()
def audit(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a finished run, or its folder's path.")
    ],
    architectures: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Architectures with costs spread evenly over the budget.",
            rich_help_panel=DRAWN,
        ),
    ] = "24",
    inside: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Architectures within 10 % of the dearest feasible cost, where rankings fail "
            "first.",
            rich_help_panel=DRAWN,
        ),
    ] = "24",
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Trainings of each. How well they agree is the ceiling; more of them add to an "
            "audit that is there, fewer leave it as it is.",
            rich_help_panel=TRAIN,
        ),
    ] = "2",
    epochs: AsTrained = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the images on which the networks are trained. Default: the run's, at "
            "which the supernet ranks in any case.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    workers: AloneTrainers = None,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of the audit's folder, inside the run's.",
            rich_help_panel=RUN,
        ),
    ] = "audit",
    runs: Folder = "runs",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Stop after the plan: what is trained, time.", rich_help_panel=RUN
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find out how far a run's ranking can be trusted: train drawn architectures from scratch.

    ```
    mixnas audit digits-default-1.5GFLOPs-seed0 --architectures 12 --inside 12
    ```

    They are ranked by the supernet, as in the search, and by their loss after a training of their
    own. Kendall's tau of the two stands beside its ceiling, the tau of one training seed against
    another; then regret, how often the winner beats others, and which mixers, widths, depths and
    stems are misplaced: all of it in audit.html. Ctrl-C stops cleanly; the same command goes on
    where it was. `mixnas show RUN/audit` shows it again.
    """
    from mixnas.jobs.settings import at_least

    drawn, near = whole("--architectures", architectures), whole("--inside", inside)
    trainings, crew = whole("--seeds", seeds), maybe("--workers", workers)
    passes, side = maybe("--epochs", epochs), maybe("--resolution", resolution)
    at_least("--seeds", trainings, 1)
    results = dry_run and not as_json
    with following(context, results=results, quiet=as_json or quiet, keeps=not dry_run) as listener:
        from mixnas.jobs.audit import audit as job

        found = job(
            run,
            architectures=drawn,
            inside=near,
            seeds=trainings,
            epochs=passes,
            resolution=side,
            workers=crew,
            name=name,
            runs=runs,
            dry_run=dry_run,
            listener=listener,
        )
    if isinstance(found, Run):
        _audited(found, as_json=as_json)
    elif as_json:
        say_json(found.to_dict())


def _audited(kept: Run, *, as_json: bool) -> None:
    """Print what an audit found."""
    from mixnas.jobs.audited import audited

    summary = audited(kept)
    if as_json:
        say_json(summary)
        return
    from mixnas import screen

    say_table(screen.audited(summary))

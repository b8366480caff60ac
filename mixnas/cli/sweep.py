"""`mixnas sweep`."""

from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixnas.cli.application import app
from mixnas.cli.options import (
    FIND,
    RUN,
    SEARCH,
    TRAIN,
    Address,
    Classes,
    CpusPerWorker,
    Dashboard,
    Epochs,
    Folder,
    GpusPerWorker,
    Image,
    Json,
    Mixers,
    Population,
    Quiet,
    Storage,
    TensorBoard,
    Trainers,
    TrialTimeout,
    Workers,
    maybe,
    names,
    number,
    whole,
)
from mixnas.cli.output import following, say_json, say_table
from mixnas.errors import InvalidOption, RunConflict
from mixnas.remote import fetch, rooted
from mixnas.run import Run

if TYPE_CHECKING:
    from mixnas.jobs.sweep_settings import SweepSettings


AFTER = "What is done with the winners"
STATUS = ("status", "file", "name", "runs", "as_json", "quiet")
"""Parameters that may be given together with ``--status``."""


@app.command()
def sweep(
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|NAME]",
            help="A TOML file that says what is searched: budget, seed, space, on, retrain and "
            "scheduler, and of mixnas search's options data, image, classes, mixers, epochs, time, "
            "batch, resolution, device, trials, sampler, racing, population. Or the name of "
            "a sweep, to go on with it as it was begun.",
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,C",
            help="Budgets, one search each. Repeated, every one is combined with every other, and "
            "they hold together.",
            rich_help_panel=FIND,
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Seeds of the searches; the first is that of the supernet too. Default: 0.",
            rich_help_panel=FIND,
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Search spaces, each with a supernet: shipped names or TOML files. Default: "
            "default.",
            rich_help_panel=FIND,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Devices for measured budgets, one search each: cpu, cuda, table:FILE.",
            rich_help_panel=FIND,
        ),
    ] = None,
    mixers: Mixers = None,
    image: Image = None,
    classes: Classes = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="As in mixnas search. Default: digits.", rich_help_panel=TRAIN
        ),
    ] = None,
    epochs: Epochs = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Images in a training step. Default: 64.", rich_help_panel=TRAIN
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="Side of the training images.", rich_help_panel=TRAIN),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="Where to train: auto, cpu or cuda.", rich_help_panel=TRAIN
        ),
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Architectures that each search evaluates. Default: 240.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="As in mixnas search. Default: surrogate.", rich_help_panel=SEARCH
        ),
    ] = None,
    racing: Annotated[
        bool | None,
        typer.Option(
            "--racing/--no-racing",
            help="Stop evaluations that are certainly beaten, or not. Default: stop them.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCHS",
            help="Then train the searches' winners for good, each architecture once, for so many "
            "epochs, by the recipe quick of mixnas retrain. Default: no retraining.",
            rich_help_panel=AFTER,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="asha|none",
            help="asha: stop early what others of the same budget beat. At a ninth of the epochs, "
            "then at a third, the best third goes on (always one at least), by its accuracy on "
            "validation images; the test images are read at the end, and only for what reached "
            "it. none: train all to the end. Default: asha.",
            rich_help_panel=AFTER,
        ),
    ] = None,
    population: Population = None,
    trainers: Trainers = None,
    workers: Workers = None,
    address: Address = None,
    cpus_per_worker: CpusPerWorker = "1",
    gpus_per_worker: GpusPerWorker = None,
    trial_timeout: TrialTimeout = None,
    dashboard: Dashboard = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the sweep's folder. Default: made of data, spaces, budgets, seeds.",
            rich_help_panel=RUN,
        ),
    ] = None,
    runs: Folder = "runs",
    storage: Storage = None,
    status: Annotated[
        bool,
        typer.Option(
            "--status",
            help="Show how far a sweep is (by its name, as argument; else the only one there) and "
            "what it has found, whether it is at work or not.",
            rich_help_panel=RUN,
        ),
    ] = False,
    tensorboard: TensorBoard = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Stop after the plan.", rich_help_panel=RUN),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search many budgets with many seeds: one supernet a space, one crew, one table, one front.

    ```
    mixnas sweep --budget 0.5GFLOPs,1GFLOPs,1.5GFLOPs --seed 0,1
    mixnas sweep --budget 20ms --on cpu,table:phone.csv --space default,edge
    mixnas sweep --budget 0.5GFLOPs,1GFLOPs --seed 0,1,2 --retrain 90
    mixnas sweep study.toml
    mixnas sweep --status
    ```

    All searches of a space share a supernet, trained for their budgets together, and run side by
    side on the same workers. The sweep's folder holds a run for each search, to be shown,
    retrained or exported by its path, and sweep.csv, front.json and report.html over all of them.
    With --retrain, SEARCH/retrain in it is the training of that search's winner.
    Ctrl-C stops cleanly; the same command goes on where it was.
    """
    if status:
        _alone(context)
        _status(file or name, runs, as_json=as_json)
        return
    given: dict[str, Any] = {
        "data": data,
        "trials": maybe("--trials", trials),
        "sampler": sampler,
        "epochs": maybe("--epochs", epochs),
        "mixers": names("--mixers", mixers) or None,
        "image": maybe("--image", image),
        "classes": maybe("--classes", classes),
        "device": device,
        "batch": maybe("--batch", batch),
        "resolution": maybe("--resolution", resolution),
        "racing": racing,
        "population": maybe("--population", population),
    }
    common = {key: value for key, value in given.items() if value is not None}
    known = _begun(file, runs)
    if known is not None:
        name = known.name
        if file != name:  # given by its path
            runs = str(known.path.parent)
    after = {"retrain": maybe("--retrain", retrain), "scheduler": scheduler}
    asked = _asked(file, known, budget, seed, space, on, common, after)
    gpus = None if gpus_per_worker is None else number("--gpus-per-worker", gpus_per_worker)
    results = dry_run and not as_json
    with following(context, results=results, quiet=as_json or quiet, keeps=not dry_run) as listener:
        from mixnas.jobs.sweep import sweep as job

        found = job(
            asked,
            trainers=maybe("--trainers", trainers),
            workers=maybe("--workers", workers),
            cpus_per_worker=number("--cpus-per-worker", cpus_per_worker),
            gpus_per_worker=gpus,
            address=address,
            trial_timeout=trial_timeout,
            dashboard=dashboard,
            tensorboard=tensorboard,
            name=name,
            runs=runs,
            storage=storage,
            dry_run=dry_run,
            listener=listener,
        )
    if isinstance(found, Run):
        _say(found, as_json=as_json)
    elif as_json:
        say_json(found)


def _begun(name: str | None, runs: str) -> Run | None:
    """Return the sweep of that name, if there is one."""
    from mixnas.jobs.swept import is_sweep
    from mixnas.run import SETTINGS

    if name is None:
        return None
    fetch(rooted(runs) / name)
    if not (rooted(runs) / name / SETTINGS).is_file():
        return None
    run = Run.open(rooted(runs) / name)
    if not is_sweep(run):
        raise RunConflict(f"run '{name}' is no sweep; give a sweep's name, or a TOML file")
    return run


def _asked(
    file: str | None,
    known: Run | None,
    budget: list[str] | None,
    seed: str | None,
    space: str | None,
    on: str | None,
    common: dict[str, Any],
    after: dict[str, Any],
) -> "SweepSettings":
    """Return what is asked, by a file or by options."""
    from mixnas.jobs.settings import Settings
    from mixnas.jobs.sweep_settings import SweepSettings, crossed
    from mixnas.jobs.swept import settings_of

    swept = {"--budget": budget, "--seed": seed, "--space": space, "--on": on, **common, **after}
    if file is not None:
        if given := [name for name, value in swept.items() if value is not None]:
            raise InvalidOption(
                f"{file} and {', '.join(given)}: a sweep is told by a file or by options; write it "
                "into the file, or leave the file out"
            )
        return SweepSettings.load(file) if known is None else settings_of(known)
    alternatives = [names("--budget", text) for text in budget or ()]
    budgets = [limits for limits in product(*alternatives) if limits]
    return SweepSettings(
        crossed(budgets, names("--on", on)),
        tuple(whole("--seed", each) for each in names("--seed", seed)) or (0,),
        names("--space", space) or ("default",),
        Settings(budget=(), **common),
        **after,
    )


def _alone(context: typer.Context) -> None:
    """Refuse options beside ``--status`` that it would not heed."""
    beside = [
        option.opts[0]
        for option in context.command.params
        if option.name not in STATUS
        and (source := context.get_parameter_source(str(option.name))) is not None
        and source.name == "COMMANDLINE"
    ]
    if beside:
        raise InvalidOption(
            f"--status and {', '.join(beside)}: --status only shows; beside it a sweep's name, "
            "--runs and --json are allowed"
        )


def _status(name: str | None, runs: str, *, as_json: bool) -> None:
    """Print how far a sweep is: the one that is named, or the only one in the folder."""
    from mixnas.jobs.show import open_run
    from mixnas.jobs.swept import is_sweep
    from mixnas.run import runs as runs_in

    if name is not None:
        _say(open_run(name, rooted(runs)), as_json=as_json)
        return
    there = [run for run in runs_in(rooted(runs)) if is_sweep(run)]
    if len(there) != 1:
        known = f"there are {', '.join(run.name for run in there)}" if there else "there is none"
        raise RunConflict(f"which sweep in {runs}? {known}; name one: mixnas sweep --status NAME")
    _say(there[0], as_json=as_json)


def _say(run: Run, *, as_json: bool) -> None:
    """Print what a sweep has found."""
    from mixnas.jobs.swept import swept

    found = swept(run)
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.swept(found))

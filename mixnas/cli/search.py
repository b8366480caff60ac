"""`mixnas search`."""

from dataclasses import fields
from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import (
    RUN,
    SEARCH,
    TRAIN,
    Address,
    Budget,
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
    Space,
    Storage,
    TensorBoard,
    Trainers,
    TrialTimeout,
    Workers,
    budgets,
    maybe,
    names,
    number,
    whole,
)
from mixnas.cli.output import following, say_found, say_json
from mixnas.run import Run


@app.command()
def search(
    context: typer.Context,
    budget: Budget = None,
    space: Space = "default",
    mixers: Mixers = None,
    image: Image = None,
    classes: Classes = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="digits (embedded), a folder of class folders, a folder of IDX files (MNIST, "
            "Fashion-MNIST), or a name that timm's create_dataset takes.",
            rich_help_panel=TRAIN,
        ),
    ] = "digits",
    epochs: Epochs = None,
    batch: Annotated[
        str,
        typer.Option(metavar="N", help="Images in a training step.", rich_help_panel=TRAIN),
    ] = "64",
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the training images; weights carry over to any other. "
            "Default: the data's (32 for digits).",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="Where to train and to time: auto, cpu or cuda.",
            rich_help_panel=TRAIN,
        ),
    ] = "auto",
    trials: Annotated[
        str, typer.Option(metavar="N", help="Architectures to evaluate.", rich_help_panel=SEARCH)
    ] = "240",
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How to choose them: surrogate, nsga2, tpe, gp, random or evolution.",
            rich_help_panel=SEARCH,
        ),
    ] = "surrogate",
    seed: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Of data splits, training and search: the same seed finds the same winner.",
            rich_help_panel=SEARCH,
        ),
    ] = "0",
    supernet_seed: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Of splits and training, if it is another than --seed: searches with several "
            "seeds then share a supernet.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    racing: Annotated[
        bool,
        typer.Option(
            "--racing/--no-racing",
            help="Stop an evaluation as soon as a rival that is no dearer has certainly beaten it "
            "(1 % error), or judge every image. Nothing is raced below 200 ranking images.",
            rich_help_panel=SEARCH,
        ),
    ] = True,
    population: Population = None,
    trainers: Trainers = None,
    workers: Workers = None,
    address: Address = None,
    cpus_per_worker: CpusPerWorker = "1",
    gpus_per_worker: GpusPerWorker = None,
    trial_timeout: TrialTimeout = None,
    dashboard: Dashboard = False,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Bound on the whole, such as 90s, 45m, 2h or 1h30m; it chooses the epochs.",
            rich_help_panel=RUN,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the run's folder. Default: made of data, space, budget, seed.",
            rich_help_panel=RUN,
        ),
    ] = None,
    runs: Folder = "runs",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Train a supernet even if a finished run of the same space, data and recipe has "
            "one that was trained for limits as wide as these.",
            rich_help_panel=RUN,
        ),
    ] = False,
    storage: Storage = None,
    tensorboard: TensorBoard = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Stop after the plan: what fits, supernet size, time, memory, disk.",
            rich_help_panel=RUN,
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a supernet, search it under a budget, name and save the winner.

    ```
    mixnas search --budget 1.5GFLOPs --budget 20ms --data photos/
    ```

    First comes the plan, then training, the search, and the finalists' second scoring. Ctrl-C
    stops cleanly; the same command goes on where it was. Costs are counted at the deployed image
    and classes, whatever the size of the training images.
    """
    from mixnas.jobs.settings import Settings, at_least

    settings = Settings(
        budget=budgets(budget),
        data=data,
        space=space,
        trials=whole("--trials", trials),
        sampler=sampler,
        seed=whole("--seed", seed),
        epochs=maybe("--epochs", epochs),
        time=time,
        mixers=names("--mixers", mixers),
        image=maybe("--image", image),
        classes=maybe("--classes", classes),
        device=device,
        batch=whole("--batch", batch),
        resolution=maybe("--resolution", resolution),
        racing=racing,
        supernet_seed=maybe("--supernet-seed", supernet_seed),
        population=maybe("--population", population),
    )
    settings.check()
    crew = maybe("--workers", workers)
    if crew is not None:
        at_least("workers", crew, 1)
    gpus = None if gpus_per_worker is None else number("--gpus-per-worker", gpus_per_worker)
    results = dry_run and not as_json
    with following(context, results=results, quiet=as_json or quiet, keeps=not dry_run) as listener:
        from mixnas.jobs.search import search as job

        found = job(
            **{field.name: getattr(settings, field.name) for field in fields(settings)},
            trainers=maybe("--trainers", trainers),
            workers=crew,
            cpus_per_worker=number("--cpus-per-worker", cpus_per_worker),
            gpus_per_worker=gpus,
            address=address,
            trial_timeout=trial_timeout,
            dashboard=dashboard,
            tensorboard=tensorboard,
            name=name,
            runs=runs,
            fresh=fresh,
            storage=storage,
            dry_run=dry_run,
            listener=listener,
        )
    if isinstance(found, Run):
        say_found(found, runs, as_json)
    elif as_json:
        say_json(found.to_dict())

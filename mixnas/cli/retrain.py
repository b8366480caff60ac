"""`mixnas retrain`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import RUN, TRAIN, Epochs, Folder, Json, Quiet, maybe, number, whole
from mixnas.cli.output import following, say_json, say_table
from mixnas.run import Run

HOW, FROM = "How it is computed (none of it changes what a run is)", "What it begins with"


@app.command()
def retrain(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ARCH.json|zoo:NAME",
            help="A finished search, a file with an architecture, or a published network.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="digits, a folder of class folders, a folder of IDX files, or a timm name. "
            "Default: what the run was searched on, else digits.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="quick (small data), deit, litv2, shvit (as published), or a TOML file.",
            rich_help_panel=TRAIN,
        ),
    ] = "quick",
    epochs: Epochs = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Images in a step, over all processes. Default: the recipe's.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Peak learning rate. Default: the recipe's, scaled with the batch.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the training images. Default: the run's, else the data's.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    all_images: Annotated[
        bool,
        typer.Option(
            "--all-images",
            help="Train on the images that the search ranks and reports by too; "
            "no epoch is judged then.",
            rich_help_panel=TRAIN,
        ),
    ] = False,
    seed: Annotated[
        str,
        typer.Option(
            metavar="N", help="Of first weights, order, augmentation.", rich_help_panel=TRAIN
        ),
    ] = "0",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto (bf16 where the GPU has it), fp32, bf16 or fp16.",
            rich_help_panel=TRAIN,
        ),
    ] = "auto",
    sync_norms: Annotated[
        bool,
        typer.Option(
            "--sync-norms",
            help="Batch norms see the batch of all GPUs, not their own.",
            rich_help_panel=TRAIN,
        ),
    ] = False,
    init: Annotated[
        str,
        typer.Option(
            metavar="WEIGHTS",
            help="scratch, supernet (what a run's winner inherits), or a file of weights.",
            rich_help_panel=FROM,
        ),
    ] = "scratch",
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="TEACHER",
            help="Distil from: supernet (a run's largest network) or timm:NAME.",
            rich_help_panel=FROM,
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights of the timm teacher.", rich_help_panel=FROM),
    ] = None,
    distillation: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="soft (the teacher's probabilities) or hard (its answer).",
            rich_help_panel=FROM,
        ),
    ] = "soft",
    width: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR",
            help="Multiplies all widths of a published network.",
            rich_help_panel=FROM,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.", rich_help_panel=HOW)
    ] = "auto",
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes, one for each GPU (with --device cpu: so many on the CPU). Under "
            "torchrun or srun leave it out: the processes that are there join. With --address "
            "they are those of the cluster.",
            rich_help_panel=HOW,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Train on the machines of a running Ray cluster, which must share the folder of "
            "--runs: auto (one on this machine) or HOST:PORT. When one is lost, all go on from "
            "the last checkpoint. Default: on this machine.",
            rich_help_panel=HOW,
        ),
    ] = None,
    cpus_per_process: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processor cores of each process of the cluster. Default: 1.",
            rich_help_panel=HOW,
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile.", rich_help_panel=HOW)
    ] = False,
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last/--no-channels-last",
            help="Keep channels last in memory.",
            rich_help_panel=HOW,
        ),
    ] = True,
    accumulate: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Take a batch in N parts, where memory is short.",
            rich_help_panel=HOW,
        ),
    ] = "1",
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="Compute activations again instead of keeping them: slower, less memory.",
            rich_help_panel=HOW,
        ),
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that decode image files, for each GPU. Default: up to 4.",
            rich_help_panel=HOW,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write the curves as event files too; a line tells how to look at them.",
            rich_help_panel=HOW,
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the folder. Default: retrain, inside the run's; else made of data, "
            "network, recipe, seed.",
            rich_help_panel=RUN,
        ),
    ] = None,
    runs: Folder = "runs",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Stop after the plan: steps, time, memory.", rich_help_panel=RUN
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    launched: Annotated[bool, typer.Option("--launched", hidden=True)] = False,
) -> None:
    """Train one architecture for good, on one GPU or many, and judge it on unseen images.

    ```
    mixnas retrain digits-default-1.5GFLOPs-seed0
    mixnas retrain zoo:shvit_s1 --data photos/ --recipe shvit --gpus 8
    mixnas retrain RUN --gpus 16 --address auto
    ```

    The test images are read once, at the end. A checkpoint is kept every 30 seconds: after a
    kill, Ctrl-C or a crash the same command goes on where it was. Several machines: start the
    same command on each by torchrun or srun, or once with the --address of a Ray cluster.
    """
    steps = {"epochs": maybe("--epochs", epochs), "batch": maybe("--batch", batch)}
    sizes = {"resolution": maybe("--resolution", resolution), "gpus": maybe("--gpus", gpus)}
    numbers = {
        "rate": None if rate is None else number("--rate", rate),
        "width": None if width is None else number("--width", width),
        "workers": maybe("--workers", workers),
        "cpus_per_process": None
        if cpus_per_process is None
        else number("--cpus-per-process", cpus_per_process),
    }
    results = dry_run and not as_json
    silent = as_json or quiet
    with following(
        context, results=results, quiet=silent, keeps=not dry_run, launched=launched
    ) as listener:
        from mixnas.jobs.retrain import retrain as job

        found = job(
            subject,
            data=data,
            recipe=recipe,
            seed=whole("--seed", seed),
            init=init,
            teacher=teacher,
            teacher_weights=teacher_weights,
            distillation=distillation,
            all_images=all_images,
            precision=precision,
            sync_norms=sync_norms,
            device=device,
            compile=compile,
            channels_last=channels_last,
            accumulate=whole("--accumulate", accumulate),
            checkpointing=checkpointing,
            tensorboard=tensorboard,
            address=address,
            name=name,
            runs=runs,
            dry_run=dry_run,
            listener=listener,
            **steps,
            **sizes,
            **numbers,  # type: ignore[arg-type]
        )
    if isinstance(found, Run) and not launched:
        _retrained(found, as_json)
    elif as_json and isinstance(found, dict):
        say_json(found)


def _retrained(kept: Run, as_json: bool) -> None:
    """Print what a retraining found."""
    from mixnas.jobs.retraining import summary

    found = summary(kept)
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.retrained(found))

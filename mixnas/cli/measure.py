"""`mixnas measure`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import (
    RUN,
    Classes,
    Folder,
    Image,
    Json,
    Mixers,
    Quiet,
    Space,
    maybe,
    names,
    whole,
)
from mixnas.cli.output import following, say, say_json, say_table
from mixnas.run import Run

DEVICE, OTHERS = "Device and conditions", "Other tasks"


@app.command()
def measure(
    context: typer.Context,
    space: Space = "default",
    mixers: Mixers = None,
    image: Image = None,
    classes: Classes = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="What to measure on: auto, cpu, cuda, cuda:1 or mps.",
            rich_help_panel=DEVICE,
        ),
    ] = "auto",
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What computes: eager (PyTorch), compile (torch.compile) or onnxruntime (CPU).",
            rich_help_panel=DEVICE,
        ),
    ] = "eager",
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Threads on the CPU. Default: the physical cores.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N", help="Images at once.", rich_help_panel=DEVICE)
    ] = "1",
    precision: Annotated[
        str,
        typer.Option(metavar="NAME", help="fp32, bf16 or fp16.", rich_help_panel=DEVICE),
    ] = "fp32",
    cost: Annotated[
        str,
        typer.Option(
            metavar="COST",
            help="latency, or energy where the device has a counter.",
            rich_help_panel=DEVICE,
        ),
    ] = "latency",
    networks: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Networks measured whole, which calibrate the sum of parts. Default: 60.",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TABLE.csv",
            help="Check and calibrate a table measured elsewhere (a phone, a board).",
            rich_help_panel=OTHERS,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write an empty table and an ONNX file for each of its rows, to be measured "
            "elsewhere and brought back by --from.",
            rich_help_panel=OTHERS,
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Where the time of a search's winner goes, beside its FLOPs.",
            rich_help_panel=OTHERS,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the table's folder. Default: made of space and conditions.",
            rich_help_panel=RUN,
        ),
    ] = None,
    runs: Folder = "runs",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Stop after the plan and its time.", rich_help_panel=RUN),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a space on a device, part by part, so that a search keeps a limit there.

    ```
    mixnas measure                                  this machine's CPU or GPU
    mixnas measure --runtime onnxruntime            as an export runs
    mixnas measure --template board/                files to be measured on another device
    mixnas measure --from board/table.csv
    mixnas measure --explain RUN
    ```

    Every part is timed alone and some networks whole, in turn with a fixed network; from both
    comes a predictor with a 90 % interval, whose upper end a search holds to the limit:
    --budget 20ms@cpu, --budget 8ms@table:TABLE.csv. A busy machine is waited for, or refused;
    nothing measured is lost, the same command goes on.
    """
    from mixnas.jobs.measure import measure as job
    from mixnas.jobs.measuring import NETWORKS

    results = dry_run and not as_json
    with following(context, results=results, quiet=as_json or quiet, keeps=not dry_run) as listener:
        found = job(
            space,
            device=device,
            runtime=runtime,
            threads=maybe("--threads", threads),
            batch=whole("--batch", batch),
            precision=precision,
            cost=cost,
            networks=NETWORKS if networks is None else whole("--networks", networks),
            mixers=names("--mixers", mixers),
            image=maybe("--image", image),
            classes=maybe("--classes", classes),
            table=table,
            template=template,
            explain=explain,
            name=name,
            runs=runs,
            dry_run=dry_run,
            listener=listener,
        )
    if isinstance(found, Run):
        _say_measured(found, runs, as_json)
    elif isinstance(found, dict):
        _say_explained(found, as_json, dry_run)
    else:
        say_json({"table": str(found)}) if as_json else say(
            f"{found}: fill in its column milliseconds, then: mixnas measure --from {found}"
        )


def _say_measured(run: Run, runs: str, as_json: bool) -> None:
    """Print what was measured."""
    from mixnas.jobs.measured_run import shown

    found = shown(run)
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.measured(found))


def _say_explained(found: dict[str, object], as_json: bool, planned: bool) -> None:
    """Print where a winner's time goes; a dry run's plan has been printed."""
    if as_json:
        say_json(found)
    elif not planned:
        from mixnas import screen

        say_table(screen.explained(found))

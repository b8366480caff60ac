"""`mixnas predict`."""

from typing import Annotated

import typer

from mixnas.cli.application import USAGE, app
from mixnas.cli.options import Folder, Json, Quiet, whole
from mixnas.cli.output import following, say_json, say_table, warn


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run, or anything that mixnas export wrote."),
    ],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, or folders of them."),
    ],
    top: Annotated[str, typer.Option(metavar="N", help="Classes named for each image.")] = "5",
    runs: Folder = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Name the likeliest classes of images, by a run or anything that mixnas export wrote.

    ```
    mixnas predict digits-default-1.5GFLOPs-seed0 seven.png
    mixnas predict model.onnx photo.jpg folder/ --top 3
    ```

    Images are prepared as the training's were. One that cannot be read is told in one line; the
    others are still answered, and the exit code is 2.
    """
    with following(context, results=False, quiet=as_json or quiet, keeps=False) as listener:
        from mixnas.jobs.predict import predict as job

        found = job(model, images, top=whole("--top", top), runs=runs, listener=listener)
    failed = [one["error"] for one in found if "error" in one]
    if as_json:
        say_json(found)
    elif len(failed) < len(found):
        from mixnas import screen

        say_table(screen.predicted(found))
    for error in failed:
        warn(f"mixnas: {error}")
    if failed:
        raise typer.Exit(USAGE)

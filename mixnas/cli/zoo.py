"""`mixnas zoo`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import Json, maybe, number
from mixnas.cli.output import say_json, say_table
from mixnas.errors import InvalidOption


@app.command()
def zoo(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One network, to build and count. Default: list all."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="Side of its images. Default: as published."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="N", help="Classes of its head. Default: 1000.")
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(metavar="FACTOR", help="Multiplies all its widths. Default: 1."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the published networks, or count one: parameters, and FLOPs by operator.

    ```
    mixnas zoo shvit_s4 --image 224 --width 0.5
    ```

    FLOPs are multiply-adds, once of the network as it is trained and once with its batch norms
    folded for inference.
    """
    from mixnas.jobs.zoo import zoo as job

    given = {
        "image": maybe("--image", image),
        "classes": maybe("--classes", classes),
        "width": None if width is None else number("--width", width),
    }
    if name is None and (useless := [option for option in given if given[option] is not None]):
        raise InvalidOption(f"--{useless[0]} without NAME; give one too: mixnas zoo shvit_s4")
    found = job(name, **given)  # type: ignore[arg-type]
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.zoo(found))

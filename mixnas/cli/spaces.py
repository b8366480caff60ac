"""`mixnas spaces`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import FIND, Budget, Classes, Image, Json, Mixers, maybe, names
from mixnas.cli.output import say_json, say_table


@app.command()
def spaces(
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="One space only: a shipped name or a TOML file. Default: all shipped.",
            rich_help_panel=FIND,
        ),
    ] = None,
    budget: Budget = None,
    mixers: Mixers = None,
    image: Image = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Describe the search spaces: size, cheapest and dearest architecture, choices by stage.

    ```
    mixnas spaces --budget 1.5GFLOPs
    ```

    With a budget: how many architectures fit, how often each stem, mixer, width and depth stands
    among them (what a found architecture has to be compared with), and which choices have no use.
    Budgets repeat and hold together. Here a budget is in FLOPs, parameters or memory; latency is
    measured by mixnas search.
    """
    from mixnas.jobs.spaces import spaces as job

    found = job(
        space,
        budget=tuple(budget or ()),
        mixers=names("--mixers", mixers),
        image=maybe("--image", image),
        classes=maybe("--classes", classes),
    )
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.spaces(found))

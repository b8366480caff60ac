"""`mixnas mixers`."""

from mixnas.cli.application import app
from mixnas.cli.options import Json
from mixnas.cli.output import say_json, say_table


@app.command()
def mixers(as_json: Json = False) -> None:
    """List the token mixers: system, idea, cost order, and the knobs that a space may offer.

    ```
    mixnas mixers
    ```

    Mixers of other packages (entry points in the group mixnas.mixers) are among them.
    """
    from mixnas.jobs.mixers import mixers as job

    known = job()
    if as_json:
        say_json(known)
        return
    from mixnas import screen

    say_table(screen.mixers(known))

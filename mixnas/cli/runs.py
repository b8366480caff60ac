"""`mixnas runs`."""

from mixnas.cli.application import app
from mixnas.cli.options import Folder, Json
from mixnas.cli.output import say_json, say_table


@app.command()
def runs(folder: Folder = "runs", as_json: Json = False) -> None:
    """List the runs in a folder: budget, data, state, and what each winner scored.

    ```
    mixnas runs --runs /data/runs
    ```
    """
    from mixnas.jobs.runs import runs as job

    found = job(folder)
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.runs(found, folder))

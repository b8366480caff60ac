"""The command line: words in, text out, each command a file, a few lines over its job.

Nothing heavy is imported before a command needs it. A mistake of the user's is one line on the
standard error and exit code 2; any other exception is ours and keeps its traceback. Results go
to the standard output, progress to the standard error.
"""

# Help lists the commands in this order.
from mixnas.cli import (  # noqa: F401, I001
    search,
    sweep,
    show,
    retrain,
    export,
    predict,
    compare,
    audit,
    pick,
    replay,
    measure,
    runs,
    mixers,
    spaces,
    zoo,
)
from mixnas.cli.application import app, main

__all__ = ["app", "main"]

"""Options that several commands share, and how their words are read."""

from collections.abc import Sequence
from typing import Annotated

import typer

from mixnas.errors import InvalidOption

FIND, TRAIN, SEARCH, RUN = "What to find", "Data and training", "Search", "The run"
CLUSTER = "Workers"

Space = Annotated[
    str,
    typer.Option(
        "--space",
        metavar="NAME|FILE",
        help="Search space: a shipped name (see mixnas spaces) or a TOML file.",
        rich_help_panel=FIND,
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="AMOUNT",
        help="Upper limit with its unit: 1.5GFLOPs, 20ms, 20ms@cuda, 8ms@table:FILE|RUN, 200MB, "
        "10Mparams, or a range 1.2-1.5GFLOPs; repeat it for several that hold together.",
        rich_help_panel=FIND,
    ),
]
Mixers = Annotated[
    str | None,
    typer.Option(
        "--mixers",
        metavar="A,B",
        help="Search these mixers only (see mixnas mixers). Default: all of the space.",
        rich_help_panel=FIND,
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="PIXELS",
        help="Side of the deployed image, at which costs are counted. Default: the space's (224).",
        rich_help_panel=FIND,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="N",
        help="Classes of the deployed network. Default: the data's; the space's (1000) for digits.",
        rich_help_panel=FIND,
    ),
]
Epochs = Annotated[
    str | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Passes over the training images. Default: the recipe's.",
        rich_help_panel=TRAIN,
    ),
]
AsTrained = Annotated[
    str | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Passes over the training images. Default: as many as the run's supernet had.",
        rich_help_panel=TRAIN,
    ),
]
Trainers = Annotated[
    str | None,
    typer.Option(
        "--trainers",
        metavar="N",
        help="Processes that train the supernet together, each its share of every batch, a GPU "
        "each where it is trained on one: on the cluster of --address, whose machines must share "
        "the folder of --runs, or here. Default: none but the command's own process.",
        rich_help_panel=CLUSTER,
    ),
]
AloneTrainers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that train; any number finds the same. Default: one a core.",
        rich_help_panel=TRAIN,
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that evaluate; any number finds the same. Default: one a core, or as many "
        "as the cluster of --address has room for.",
        rich_help_panel=CLUSTER,
    ),
]
Population = Annotated[
    str | None,
    typer.Option(
        "--population",
        metavar="N",
        help="Architectures of a generation, of which so many can be evaluated at once: give at "
        "least as many as workers. Another number finds others. Default: 20.",
        rich_help_panel=SEARCH,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Search on a running Ray cluster: auto (one on this machine), HOST:PORT (from a "
        "machine of the cluster) or ray://HOST:PORT (from elsewhere). Default: a private one.",
        rich_help_panel=CLUSTER,
    ),
]
CpusPerWorker = Annotated[
    str,
    typer.Option(
        "--cpus-per-worker",
        metavar="N",
        help="Processor cores of each worker, or a fraction of one.",
        rich_help_panel=CLUSTER,
    ),
]
GpusPerWorker = Annotated[
    str | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="N",
        help="GPUs of each worker, or a fraction of one such as 0.5. Default: this machine's are "
        "shared where the supernet is trained on one; none in a cluster.",
        rich_help_panel=CLUSTER,
    ),
]
TrialTimeout = Annotated[
    str | None,
    typer.Option(
        "--trial-timeout",
        metavar="TIME",
        help="How long one evaluation may take, such as 90s or 5m; what takes longer has failed. "
        "Default: a hundred times what the plan measures, 5m at least.",
        rich_help_panel=CLUSTER,
    ),
]
Folder = Annotated[
    str,
    typer.Option(
        "--runs",
        metavar="FOLDER",
        help="Folder that holds the runs, or an address such as s3://bucket/runs: then they are "
        "worked on in the cache folder here, and uploaded twice a minute and at the end.",
        rich_help_panel=RUN,
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="ADDRESS",
        help="Show the trials live in an Optuna storage, for its dashboard: sqlite:///study.db, "
        "postgresql://USER@HOST/NAME, or the path of a journal file. The run's own log stays the "
        "truth. Then: optuna-dashboard ADDRESS.",
        rich_help_panel=RUN,
    ),
]
Dashboard = Annotated[
    bool,
    typer.Option(
        "--dashboard",
        help="Show Ray's dashboard of the private cluster, on this machine only, while it works; "
        "a line tells where. Needs: pip install 'mixnas[cluster]'.",
        rich_help_panel=CLUSTER,
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Draw the training's loss and the best loss so far into event files in the run's "
        "folder; a line tells how to look at them. Nothing is served.",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON only, for programs: no tables, no progress.", rich_help_panel=RUN
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=RUN)
]


def budgets(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Return the budgets, refusing now what cannot be read."""
    from mixnas.cost.limit import parse_all

    parse_all(texts or ())
    return tuple(texts or ())


def whole(option: str, text: str) -> int:
    """Read a whole number; `option` is named where it is none."""
    try:
        return int(text)
    except ValueError:
        raise InvalidOption(f"{option} {text!r}: a whole number is needed") from None


def number(option: str, text: str) -> float:
    """Read a number; `option` is named where it is none."""
    try:
        return float(text)
    except ValueError:
        raise InvalidOption(f"{option} {text!r}: a number is needed") from None


def maybe(option: str, text: str | None) -> int | None:
    """Read a whole number if one is given."""
    return None if text is None else whole(option, text)


def names(option: str, text: str | None) -> tuple[str, ...]:
    """Split names at commas, each once."""
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InvalidOption(f"{option} {text!r}: names separated by commas are needed, such as a,b")
    return names

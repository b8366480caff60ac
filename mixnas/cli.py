"""The command line: words in, text out, each command a few lines over its job.

Nothing heavy is imported before a command needs it. A mistake of the user's is one line on the
standard error and exit code 2; any other exception is ours and keeps its traceback. Results go
to the standard output, progress to the standard error.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mixnas
from mixnas.errors import InvalidOption, MixnasError
from mixnas.run import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mixnas.jobs.settings import Listener

USAGE = 2
INTERRUPTED = 130

FIND, TRAIN, SEARCH, RUN = "What to find", "Data and training", "Search", "The run"
BESIDE = "Who stands beside the winner"

app = typer.Typer(
    name="mixnas",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Find a vision network whose token mixers are searched, block by block, under a budget.

One supernet holds every architecture of a space; it is trained once, then searched with Optuna
and Ray Tune. Nothing over the budget is ever evaluated. The winner, its weights, every trial and
a report are kept in one folder, runs/NAME; the same command goes on with it after a stop.

```
mixnas search --budget 1.5GFLOPs      embedded digits, in minutes
mixnas search --budget 1.5GFLOPs --budget 20ms --data photos/
mixnas spaces --budget 1.5GFLOPs      how many architectures fit
mixnas show NAME                      what a run found
mixnas compare NAME                   its winner beside published networks, trained alike
```

**Budgets** are a number and a unit, and the unit names the cost: 1.5GFLOPs (multiply-adds of one
image; GMACs is the same), 20ms (latency of one image on the device), 10Mparams (size),
1.2-1.5GFLOPs (both ends). Several budgets hold together.
""",
)

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
        help="Upper limit with its unit: 1.5GFLOPs, 20ms, 10Mparams, or a range 1.2-1.5GFLOPs; "
        "repeat it for several that hold together.",
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
Folder = Annotated[
    str,
    typer.Option(
        "--runs", metavar="FOLDER", help="Folder that holds the runs.", rich_help_panel=RUN
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON only, for programs: no tables, no progress.", rich_help_panel=RUN
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        _say(f"mixnas {mixnas.__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


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
    epochs: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Passes over the training images. Default: the recipe's.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
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
            help="How to choose them: nsga2, tpe, gp, random or evolution.",
            rich_help_panel=SEARCH,
        ),
    ] = "nsga2",
    seed: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Of data splits, training and search: the same seed finds the same winner.",
            rich_help_panel=SEARCH,
        ),
    ] = "0",
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that evaluate; any number finds the same. Default: one a core.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Stop after the plan: what fits, supernet size, time, memory, disk.",
            rich_help_panel=RUN,
        ),
    ] = False,
    as_json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=RUN)
    ] = False,
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
        budget=_budgets(budget),
        data=data,
        space=space,
        trials=_whole("--trials", trials),
        sampler=sampler,
        seed=_whole("--seed", seed),
        epochs=_maybe("--epochs", epochs),
        time=time,
        mixers=_names("--mixers", mixers),
        image=_maybe("--image", image),
        classes=_maybe("--classes", classes),
        device=device,
        batch=_whole("--batch", batch),
        resolution=_maybe("--resolution", resolution),
    )
    settings.check()
    crew = _maybe("--workers", workers)
    if crew is not None:
        at_least("workers", crew, 1)
    begun: list[str] = []
    listener = _listener(begun, results=dry_run and not as_json, quiet=as_json or quiet)
    try:
        from mixnas.jobs.search import search as job

        found = job(
            **{field.name: getattr(settings, field.name) for field in fields(settings)},
            workers=crew,
            name=name,
            runs=runs,
            dry_run=dry_run,
            listener=listener,
        )
    except KeyboardInterrupt:
        listener.end()
        _interrupted(begun if not dry_run else [], context.obj or [])
        raise typer.Exit(INTERRUPTED) from None
    finally:
        listener.end()
    if isinstance(found, Run):
        _found(found, runs, as_json)
    elif as_json:
        _json(found.to_dict())


@app.command()
def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a run, or the path of its folder.")
    ],
    runs: Folder = "runs",
    as_json: Json = False,
) -> None:
    """Show what a run found: winner, front, files; or how far it has come.

    ```
    mixnas show digits-default-1.5GFLOPs-seed0
    ```
    """
    _found(run, runs, as_json)


@app.command()
def compare(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a finished run, or its folder's path.")
    ],
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="Who stands beside the winner: system (the five published ones), mixer (one "
            "mixer alone), control (identity, attention), random, timm. Default: all.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    random: Annotated[
        str,
        typer.Option(metavar="N", help="Random feasible networks.", rich_help_panel=BESIDE),
    ] = "3",
    timm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The network of timm. Default: the nearest in cost of well-known ones.",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Trainings of each; more of them add to a comparison that is there.",
            rich_help_panel=TRAIN,
        ),
    ] = "3",
    epochs: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Passes over the training images. Default: as many as the run's supernet had.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that train; any number finds the same. Default: one a core.",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of the comparison's folder, inside the run's.",
            rich_help_panel=RUN,
        ),
    ] = "compare",
    runs: Folder = "runs",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Stop after the plan: who takes part, time.", rich_help_panel=RUN
        ),
    ] = False,
    as_json: Json = False,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print the table in Markdown only.", rich_help_panel=RUN),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train a run's winner and others of its cost from scratch, alike, and compare them.

    ```
    mixnas compare digits-default-1.5GFLOPs-seed0 --seeds 2
    ```

    Beside it stand the five published systems, scaled in width to the budget; networks of one
    mixer; random ones; one of timm. All have the same recipe, data and seeds, and are judged on
    images that chose nothing. Ctrl-C stops cleanly; the same command goes on where it was.
    """
    from mixnas.jobs.settings import at_least

    if as_json and markdown:
        raise InvalidOption("--json and --markdown together; give one of them")
    trainings, draws = _whole("--seeds", seeds), _whole("--random", random)
    passes, crew = _maybe("--epochs", epochs), _maybe("--workers", workers)
    at_least("--seeds", trainings, 1)
    at_least("--random", draws, 0)
    for option, number in (("--epochs", passes), ("--workers", crew)):
        if number is not None:
            at_least(option, number, 1)
    begun: list[str] = []
    silent = as_json or markdown or quiet
    listener = _listener(begun, results=dry_run and not as_json, quiet=silent)
    try:
        from mixnas.jobs.compare import compare as job

        found = job(
            run,
            seeds=trainings,
            epochs=passes,
            random=draws,
            workers=crew,
            only=_names("--only", only),
            timm=timm,
            name=name,
            runs=runs,
            dry_run=dry_run,
            listener=listener,
        )
    except KeyboardInterrupt:
        listener.end()
        _interrupted(begun if not dry_run else [], context.obj or [])
        raise typer.Exit(INTERRUPTED) from None
    finally:
        listener.end()
    if isinstance(found, Run):
        _compared(found, as_json=as_json, markdown=markdown)
    elif as_json:
        _json(found.to_dict())


def _compared(kept: Run, *, as_json: bool, markdown: bool) -> None:
    """Print what a comparison found."""
    from mixnas.jobs.compare import comparison

    summary = comparison(kept)
    if as_json:
        _json(summary)
        return
    from mixnas import screen

    if markdown:
        _say(screen.markdown(summary))
    else:
        _print(screen.compared(summary))


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
        _json(found)
        return
    from mixnas import screen

    _print(screen.runs(found))


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
        _json(known)
        return
    from mixnas import screen

    _print(screen.mixers(known))


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

    With a budget: how many architectures fit, and which choices have no use under it. Here a
    budget is in FLOPs or parameters; latency is measured by mixnas search.
    """
    from mixnas.jobs.spaces import spaces as job

    found = job(
        space,
        budget=tuple(budget or ()),
        mixers=_names("--mixers", mixers),
        image=_maybe("--image", image),
        classes=_maybe("--classes", classes),
    )
    if as_json:
        _json(found)
        return
    from mixnas import screen

    _print(screen.spaces(found))


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
        "image": _maybe("--image", image),
        "classes": _maybe("--classes", classes),
        "width": None if width is None else _number("--width", width),
    }
    if name is None and (useless := [option for option in given if given[option] is not None]):
        raise InvalidOption(f"--{useless[0]} without NAME; give one too: mixnas zoo shvit_s4")
    found = job(name, **given)  # type: ignore[arg-type]
    if as_json:
        _json(found)
        return
    from mixnas import screen

    _print(screen.zoo(found))


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit: the console script ``mixnas``.

    Args:
        words: the arguments, by default those of the process.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, `mixnas spaces | head`: nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(
            words or ["--help"], prog_name="mixnas", standalone_mode=False, obj=words
        )
        return code if isinstance(code, int) else 0
    except MixnasError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # not typer's or click's own
            raise
        context = getattr(error, "ctx", None)
        return _fail(f"{error.format_message()}; see {_path(context)} --help")


def _path(context: typer.Context | None) -> str:
    return context.command_path if context is not None else "mixnas"


def _fail(message: str) -> int:
    """Write one line, whatever the message holds, and return the exit code."""
    _warn("mixnas: " + " ".join(message.split()).replace(".;", ";"))
    return USAGE


def _warn(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _json(data: Any) -> None:
    _say(json.dumps(data, indent=1))  # ASCII: any terminal and any file name can take it


def _print(renderable: "RenderableType") -> None:
    from mixnas.terminal import console

    console(sys.stdout).print(renderable)


def _listener(begun: list[str], *, results: bool, quiet: bool) -> "Listener":
    """Return bars where the standard error is a terminal, else lines.

    Args:
        begun: gets the run's folder as soon as it is known.
        results: whether the plan is what was asked for, and goes to the standard output.
        quiet: whether to show nothing, but a plan that was asked for.
    """
    from mixnas.terminal import Bars, Lines, Quiet, console, rows

    def planned(plan: Mapping[str, Any]) -> None:
        begun.append(str(plan.get("run", "")))
        if results or not quiet:
            console(sys.stdout if results else sys.stderr).print(rows(plan))

    if quiet:
        return Quiet(planned)
    if sys.stderr.isatty():
        return Bars(console(sys.stderr), planned)
    return Lines(_warn, planned)


def _interrupted(begun: Sequence[str], words: Sequence[str]) -> None:
    """Say what is kept of an interrupted job, and how to go on."""
    if not begun:
        _warn("mixnas: interrupted before the run began; nothing is kept")
        return
    _warn(f"mixnas: interrupted; what was done is kept in {begun[0]}. To go on where it stopped:")
    _warn(f"  {shlex.join(['mixnas', *words])}")


def _found(run: str | Run, runs: str, as_json: bool) -> None:
    """Print what a run found."""
    from mixnas.jobs.show import show as job

    found = job(run, runs)
    if as_json:
        _json(found)
        return
    from mixnas import screen

    _print(screen.found(found))


def _budgets(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Return the budgets, refusing now what cannot be read."""
    from mixnas.cost.limit import parse_all

    parse_all(texts or ())
    return tuple(texts or ())


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidOption(f"{option} {text!r}: a whole number is needed") from None


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidOption(f"{option} {text!r}: a number is needed") from None


def _maybe(option: str, text: str | None) -> int | None:
    return None if text is None else _whole(option, text)


def _names(option: str, text: str | None) -> tuple[str, ...]:
    """Split names at commas, each once."""
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InvalidOption(f"{option} {text!r}: names separated by commas are needed, such as a,b")
    return names

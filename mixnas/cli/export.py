"""`mixnas export`."""

from typing import Annotated

import typer

from mixnas.cli.application import app
from mixnas.cli.options import Folder, Json, Quiet, maybe, names, whole
from mixnas.cli.output import following, say_json, say_table

WHAT, PROOF = "What to export", "How it is proved"


@app.command()
def export(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ARCH.json|zoo:NAME",
            help="A run (what it retrained, else its winner with inherited weights), a file with "
            "an architecture, or a published network.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORM,...",
            help="onnx (ONNX Runtime), pt2 (torch.export), timm (a timm model), hf (Hugging "
            "Face's folder), or several: onnx,pt2,timm,hf.",
            rich_help_panel=WHAT,
        ),
    ] = "onnx",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the images. Default: what it was trained at, or published.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Weights of ARCH.json or zoo:NAME. Default: untrained.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold/--keep-norms",
            help="Fold batch norms where that is exact; keep them to train further.",
            rich_help_panel=WHAT,
        ),
    ] = True,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Quantise the ONNX export too, and tell the accuracy before and after.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The retraining in a search's folder.", rich_help_panel=WHAT
        ),
    ] = "retrain",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to prove it on. Default: what it was trained on, else digits.",
            rich_help_panel=PROOF,
        ),
    ] = None,
    images: Annotated[
        str,
        typer.Option(
            metavar="N", help="Test images to prove it on, at most.", rich_help_panel=PROOF
        ),
    ] = "1000",
    runs: Folder = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a trained network; every form is read back and compared before it is kept.

    ```
    mixnas export digits-default-1.5GFLOPs-seed0 --to onnx,pt2,timm,hf
    mixnas export zoo:shvit_s4 --weights shvit_s4.pth --to onnx --int8
    ```

    Each form runs in its own runtime on test images: logits must agree to 1e-4 and every class
    must be the same, else nothing is kept. Needs: pip install 'mixnas[export]' for onnx.
    """
    with following(context, results=False, quiet=as_json or quiet, keeps=False) as listener:
        from mixnas.jobs.export import export as job

        found = job(
            subject,
            names("--to", to),
            image=maybe("--image", image),
            images=whole("--images", images),
            data=data,
            weights=weights,
            fold=fold,
            int8=int8,
            name=name,
            runs=runs,
            listener=listener,
        )
    if as_json:
        say_json(found)
        return
    from mixnas import screen

    say_table(screen.exported(found))

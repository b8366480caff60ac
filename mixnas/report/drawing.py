"""What every figure shares: panels, colours, literal labels, PNG; no global state of matplotlib."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def canvas(columns: int, height: float) -> "tuple[Figure, list[Axes]]":
    """Return a figure of so many panels side by side, its height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": "mixnas"})
    return buffer.getvalue()


def literal(text: object) -> str:
    """Return a label that matplotlib takes literally: a pair of dollars would be mathematics."""
    return str(text).replace("$", r"\$")


def colour(mixer: str) -> tuple[float, float, float]:
    """Return a mixer's colour: the same in every run."""
    import colorsys

    known = ("additive", "aff", "hilo", "single_head", "xnorm", "attention", "identity")
    place = known.index(mixer) if mixer in known else len(known) + sum(mixer.encode()) % 8
    return colorsys.hsv_to_rgb(place * 0.618 % 1, 0.55, 0.85)

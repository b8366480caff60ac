"""``mixnas measure --explain``: where a network's time goes, part by part, beside its FLOPs.

Pure bookkeeping over figures that were measured before: which multiply-adds are cheap on a
device, and which are not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixnas.arch import Architecture
from mixnas.cost import count
from mixnas.cost.table import CostTable
from mixnas.errors import InvalidOption, TableMissing
from mixnas.jobs.subject import Subject, resolve
from mixnas.network import Part, Segment, parts, walk
from mixnas.run import Run

if TYPE_CHECKING:
    from mixnas.cost.measured import Measured
    from mixnas.cost.memory import PeakMemory
    from mixnas.cost.predictor import Predictor

FORMAT = 1

UNITS = {"latency": "ms", "energy": "mJ"}
"""In what each measured quantity is given."""

QUARTILES = ("lower", "median", "upper")

GROUPS = {
    "stages": ("stage",),
    "kinds": ("kind",),
    "operations": ("kind", "operation"),  # a mixer of the name of a kind stands for itself
}
"""In what rows of one sum agree; the last names the sum."""

NOTABLE = 0.05
"""Share of the total below which an operation is not worth a sentence."""

Row = dict[str, Any]


def subject_of(subject: str | Path | Run, runs: Path) -> tuple[Subject, Architecture]:
    """Return what is to be explained, and its architecture.

    Args:
        subject: a finished search, its name or folder, or a file that holds an architecture.
        runs: the folder of all runs.

    Raises:
        InvalidOption: for a published network, which is not made of a space's parts.
        RunConflict: if there is no such run, or it has no winner yet.
        InvalidSpace: if the file holds no architecture.
    """
    found = resolve(subject, runs)
    if "arch" not in found.source:
        raise InvalidOption(
            f"{found.label}: a published network is not made of a space's parts; give a run, or "
            "a file that holds an architecture"
        )
    return found, Architecture.from_dict(found.source["arch"])


def explanation(
    arch: Architecture,
    table: "Measured",
    predictor: "Predictor | None" = None,
    *,
    whole: Mapping[str, Any] | None = None,
    memory: "PeakMemory | None" = None,
    memory_measured: int | None = None,
) -> dict[str, Any]:
    """Take an architecture's measured cost apart.

    Args:
        arch: the architecture.
        table: the measured parts; every part of the network must be in it.
        predictor: what predicts the whole.
        whole: the network's own figures, as `timing.stopwatch.Timing.to_dict` gives them;
            ``median`` is used, ``lower`` and ``upper`` where they are there.
        memory: the cost table of peak memory, under the table's conditions.
        memory_measured: bytes that were seen.

    Returns:
        Plain data. `unit` is milliseconds (``ms``) or millijoules (``mJ``) and holds for every
        amount. `sum` is that of the parts, each measured alone; shares are shares of it. `rows`
        holds the parts in order; `stages`, `kinds`, `mixers` and `operations` (the mixers by
        name, the other kinds by theirs) hold sums of rows. In each: amount, share, flops,
        flops_share, params, rate (multiply-adds a second, None of energy) and per_flop: what a
        multiply-add costs there, as a multiple of the network's mean (None without FLOPs).
        Also predicted (value, low, high), measured (lower, median, upper), difference (of the
        prediction to the measured median, as a share of it), memory and `sentence`.

    Raises:
        TableMissing: if the table lacks parts of the architecture.
    """
    rows = list(_rows(arch, table))
    total, clock = _summed(rows), _clock(table)
    _add_shares(rows, total, clock)
    sums = {name: _sums(rows, keys, total, clock) for name, keys in GROUPS.items()}
    foretold = None if predictor is None else predictor.predict(arch)
    value = None if foretold is None else foretold.value
    measured = None if whole is None else {k: whole[k] for k in QUARTILES if k in whole}
    found = {
        "format": FORMAT,
        "id": arch.id,
        "arch": arch.to_dict(),
        "quantity": table.quantity,
        "unit": UNITS[table.quantity],
        "conditions": dict(table.conditions),
        "sum": total["amount"],
        "flops": total["flops"],
        "params": total["params"],
        "predicted": None if foretold is None else asdict(foretold),
        "measured": measured,
        "difference": None if value is None or not measured else value / measured["median"] - 1,
        "memory": None if memory is None else _memory(arch, memory, memory_measured),
        "rows": rows,
        **sums,
        "mixers": [row for row in sums["operations"] if row["kind"] == "mixer"],
    }
    return found | {"sentence": sentence(found)}


def sentence(found: Mapping[str, Any]) -> str:
    """Say in one sentence what takes most, and which multiply-adds are dear and cheap there."""
    what = "energy" if found["quantity"] == "energy" else "time"
    most = max(found["stages"], key=lambda row: row["share"])
    text = (
        f"{placed(most)} takes {most['share']:.0%} of the {what} with "
        f"{most['flops_share']:.0%} of the FLOPs"
    )
    priced = [row for row in found["operations"] if row["per_flop"] and _notable(row)]
    if len(priced) < 2:
        return text
    chosen = [row for row in priced if row["kind"] == "mixer"]  # what a search can change
    dear = max(chosen or priced, key=lambda row: row["per_flop"])
    cheap = min((row for row in priced if row is not dear), key=lambda row: row["per_flop"])
    return (
        f"{text}; a FLOP in {called(dear)} costs {dear['per_flop']:.2g} times the mean, "
        f"in {called(cheap)} {cheap['per_flop']:.2g}"
    )


def placed(row: Mapping[str, Any]) -> str:
    """Return a stage's name with its stride."""
    return f"{row['name']} (stride {row['stride']})" if row["stride"] else f"the {row['name']}"


def called(row: Mapping[str, Any]) -> str:
    """Return an operation's name in a sentence: mixers as they are, the others with an article."""
    names = {"local": "local 3x3", "mlp": "MLP"}
    return row["name"] if row["kind"] == "mixer" else f"the {names.get(row['kind'], row['kind'])}"


def _part(part: Part, amount: float, flops: int) -> Row:
    return {
        "operation": _operation(part),
        "kind": part.kind,
        "spec": part.spec,
        "shape": list(part.shape),
        "amount": amount,
        "flops": flops,
    }


def _operation(part: Part) -> str:
    """Return a mixer's name, or another part's kind."""
    return str(part.spec[0]) if part.kind == "mixer" else part.kind


def _counter(table: "Measured", measure: Any) -> CostTable:
    return CostTable(measure, image=table.image, classes=table.classes, in_chans=table.in_chans)


def _rows(arch: Architecture, table: "Measured") -> Iterator[Row]:
    """Yield each part in order: where it stands, what it is, what it costs."""
    flops, params = _counter(table, count.flops), _counter(table, count.params)
    placed_parts = list(_placed(arch, flops))
    if lacking := [part for _, part in placed_parts if part not in table.parts]:
        first = lacking[0]
        raise TableMissing(
            f"the table of {table.conditions.get('device', 'the device')} lacks {len(lacking)} of "
            f"the {len(placed_parts)} parts of architecture {arch.id}, the first of them "
            f"{_operation(first)} at {'x'.join(map(str, first.shape))}; measure them, or give the "
            "table of the space that the architecture is of"
        )
    for place, part in placed_parts:
        told = _part(part, table.parts[part], flops.part(part))
        yield place | told | {"params": params.part(part)}


def _placed(arch: Architecture, sizes: CostTable) -> Iterator[tuple[Row, Part]]:
    """Yield each part with its stage, stride, block and knobs."""
    for place, segment in zip(_places(arch), walk(arch), strict=True):
        taken = parts(segment, image=sizes.image, classes=sizes.classes, in_chans=sizes.in_chans)
        for part in taken:
            knobs = dict(part.spec[2]) if part.kind == "mixer" else {}
            knobs |= {"ratio": part.spec[1]} if part.kind == "mlp" else {}
            yield place | {"knobs": knobs}, part


def _places(arch: Architecture) -> Iterator[Row]:
    """Yield where each segment of `network.walk` stands; a merge belongs to what it leads to."""
    yield {"stage": "stem", "stride": None, "block": None}
    for index, stage in enumerate(arch.stages):
        at = {"stage": f"stage {index + 1}", "stride": arch.stem.stride << index}
        if index:
            yield at | {"block": None}
        for number in range(len(stage.blocks)):
            yield at | {"block": number + 1}
    yield {"stage": "head", "stride": None, "block": None}


def _clock(table: "Measured") -> float | None:
    """Return what makes FLOPs of an image by milliseconds of a batch a rate; None of energy."""
    batch = int(table.conditions.get("batch", 1))
    return 1e3 * batch if table.quantity == "latency" else None


def _summed(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return {key: sum(row[key] for row in rows) for key in ("amount", "flops", "params")}


def _add_shares(rows: Iterable[Row], total: Row, clock: float | None) -> None:
    """Add each row's shares, and what its multiply-adds cost."""
    for row in rows:
        share, flops = row["amount"] / total["amount"], row["flops"] / total["flops"]
        row["share"], row["flops_share"] = share, flops
        row["per_flop"] = share / flops if flops else None
        row["rate"] = None if clock is None else row["flops"] / row["amount"] * clock


def _sums(rows: Sequence[Row], keys: Sequence[str], total: Row, clock: float | None) -> list[Row]:
    """Return the sums over rows that are alike, in the order of their first."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(row[key] for key in keys), []).append(row)
    sums = [
        {
            "name": name[-1],
            "kind": group[0]["kind"],
            "stride": group[0]["stride"] if "stage" in keys else None,
            "parts": len(group),
            **_summed(group),
        }
        for name, group in alike.items()
    ]
    _add_shares(sums, total, clock)
    return sums


def _notable(row: Mapping[str, Any]) -> bool:
    return max(row["share"], row["flops_share"]) >= NOTABLE


def _memory(arch: Architecture, table: "PeakMemory", measured: int | None) -> Row:
    """Return peak memory: the weights, and what is live beside them at the worst segment."""
    segments: list[Row] = [
        {"name": _segment(place, segment), "bytes": table.peak(segment)}
        for place, segment in zip(_places(arch), walk(arch), strict=True)
    ]
    worst = max(segments, key=lambda one: one["bytes"])
    weights = sum(map(table.weights, walk(arch)))
    return {
        "weights": weights,
        "activations": worst["bytes"],
        "total": weights + worst["bytes"],
        "measured": measured,
        "at": worst["name"],
        "segments": segments,
    }


def _segment(place: Row, segment: Segment) -> str:
    if segment[0] == "merge":
        return f"merge into {place['stage']}"
    block = f", block {place['block']}" if place["block"] else ""
    return f"{place['stage']}{block}"

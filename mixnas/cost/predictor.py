"""`Predictor`: what a network takes whole, with an interval; its upper end is a cost table.

A sum over parts that were measured alone is an estimate: in a network caches are colder, copies
are saved, something is paid once. Whole networks teach how the sum is to be corrected
(`mixnas.cost.terms`) and how far off it then still is (`mixnas.cost.calibration`). Both add up over
segments, so the search runs on the interval's upper end and what it finds keeps its limit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil, exp, inf
from typing import Any

import numpy as np

from mixnas.arch import Architecture
from mixnas.cost.calibration import Calibration, Design, calibrate, folds, ranked
from mixnas.cost.measured import Measured
from mixnas.cost.tablerows import Sizes, frozen, label
from mixnas.cost.terms import MODELS, design, shares
from mixnas.errors import InvalidOption, InvalidSpace, InvalidTable, TableMissing
from mixnas.network import Part, Segment, parts, walk

FORMAT = 1
SMALLEST = 10**6
"""Nanoseconds in a millisecond, nanojoules in a millijoule: tables for the search are integers."""
HELD_OUT = 5
"""Folds in which each calibration network is predicted from the others."""


@dataclass(frozen=True)
class Prediction:
    """What a network should take, in milliseconds or millijoules.

    Attributes:
        value: the best guess.
        low: lower end of the interval; `value` if there is none.
        high: upper end of it, to the nanosecond what `Predictor.__call__` returns.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HeldOut:
    """A calibration network, predicted from others.

    Attributes:
        arch: the network.
        predicted: by a predictor that has not seen it.
        measured: what it took.
    """

    arch: Architecture
    predicted: Prediction
    measured: float

    @property
    def covered(self) -> bool:
        """Whether what was measured lies within the interval."""
        return self.predicted.low <= self.measured <= self.predicted.high


class Predictor:
    """Predicts networks; called on one, it gives the interval's upper end in integers.

    Made by `fit` or `from_dict`.

    Args:
        measured: parts and calibration networks.
        calibration: what the networks taught.
        level: of the interval.
        seed: of the split into networks to fit to and networks that tell the error.
        taught: further networks that it was refitted with, chosen by a search.
    """

    def __init__(
        self,
        measured: Measured,
        calibration: Calibration,
        level: float,
        seed: int,
        taught: Mapping[Architecture, float] | None = None,
    ) -> None:
        self.measured = measured
        self.calibration = calibration
        self.level = level
        self.seed = seed
        self.taught = dict(taught or {})
        self.cost = measured.quantity
        self._sizes = Sizes.of(measured.conditions)
        self._parts: dict[Part, float] = {}
        self._segments: dict[Segment, int] = {}

    @classmethod
    def fit(cls, measured: Measured, level: float = 0.9, seed: int = 0) -> "Predictor":
        """Calibrate on the networks of a table.

        A third of them (drawn by the seed) is fitted to: non-negative coefficients of the terms
        that cross-validation within that third chooses. The others tell the error, so at `level`
        the interval covers that share of new networks from the distribution that the calibration
        networks came from, with 90 % confidence over their draw (`calibration.conformal`). That
        takes 33 networks; with fewer the interval goes to the greatest error, which is worth
        `quality["confidence"]`; with fewer than 20 there is none (`calibrated` is False) and the
        prediction is the sum of parts, scaled.

        Args:
            measured: parts, and whole networks made of them.
            level: the share of new networks that the interval is to cover, in (0, 1).
            seed: of the split.

        Raises:
            InvalidOption: if the level is no such share.
            TableMissing: if a network has a part that is not in the table.
        """
        if not 0 < level < 1:
            raise InvalidOption(f"level {level!r} of an interval: must lie between 0 and 1")
        found = calibrate(_design(measured, measured.networks), level, seed)
        return cls(measured, found, level, seed)

    @property
    def calibrated(self) -> bool:
        """Whether there is an interval."""
        return self.calibration.width is not None

    def __call__(self, arch: Architecture) -> int:
        """Return the upper end for a network: nanoseconds or nanojoules, rounded up.

        Raises:
            TableMissing: if a part is not in the table.
        """
        return sum(self.segment(segment) for segment in walk(arch))

    def segment(self, segment: Segment) -> int:
        """Return one segment's share of the upper end.

        Raises:
            TableMissing: if a part is not in the table.
        """
        if segment not in self._segments:
            sizes = {"image": self._sizes.image, "classes": self._sizes.classes}
            taken = parts(segment, **sizes, in_chans=self._sizes.in_chans)
            value = sum(self.part(part) for part in taken)
            self._segments[segment] = ceil(SMALLEST * exp(self.calibration.width or 0.0) * value)
        return self._segments[segment]

    def part(self, part: Part) -> float:
        """Return what a part adds to a network, without the interval.

        Raises:
            TableMissing: if it is not in the table.
        """
        if part not in self._parts:
            figure = _figure(self.measured, part)
            found = shares(self.calibration.model, part, figure)
            factors = self.calibration.coefficients
            self._parts[part] = sum(factors[term] * share for term, share in found.items())
        return self._parts[part]

    def predict(self, arch: Architecture) -> Prediction:
        """Return the best guess for a network and its interval.

        Raises:
            TableMissing: if a part is not in the table.
        """
        value = sum(self.part(part) for part in self._sizes.parts(arch))
        low = value * exp(-(self.calibration.width or 0.0))
        return Prediction(value, low, self(arch) / SMALLEST if self.calibrated else value)

    def refitted(self, more: Mapping[Architecture, float]) -> "Predictor":
        """Return a predictor that has learnt from networks which a search chose.

        The terms stay. The networks join those that are fitted to, never those that tell the
        error: a search does not draw at random. The interval is then widened, if need be, to hold
        every network that it was taught: a search that goes on does not return to one that was
        found too slow.

        Args:
            more: networks and what they took whole.

        Raises:
            TableMissing: if a network has a part that is not in the table.
        """
        taught = {**self.taught, **more}
        found = calibrate(
            _design(self.measured, self.measured.networks),
            self.level,
            self.seed,
            taught=_design(self.measured, taught),
            model=self.calibration.model,
        )
        return Predictor(self.measured, found, self.level, self.seed, taught)

    def held_out(self) -> list[HeldOut]:
        """Predict each calibration network by a predictor that has not seen it.

        Each of `HELD_OUT` folds is predicted by what the others calibrate, from choosing the terms
        to the interval; since those are fewer networks, the errors are rather too great.
        """
        archs = list(self.measured.networks)
        if len(archs) <= HELD_OUT:
            return []
        found: dict[Architecture, HeldOut] = {}
        order = np.random.default_rng(self.seed).permutation(len(archs))
        for others, these in folds(len(archs), HELD_OUT):
            known = {archs[i]: self.measured.networks[archs[i]] for i in order[others]}
            learnt = Predictor.fit(replace(self.measured, networks=known), self.level, self.seed)
            for arch in (archs[i] for i in order[these]):
                found[arch] = HeldOut(arch, learnt.predict(arch), self.measured.networks[arch])
        return [found[arch] for arch in archs]

    @cached_property
    def quality(self) -> dict[str, Any]:
        """How good the predictions are, plain values; errors are of `held_out`.

        ``error`` and ``error_90`` are the median and the 90th percentile of absolute relative
        errors, ``spearman`` the correlation of ranks, ``coverage`` the share of networks within
        their interval (all None with too few networks). ``down`` and ``up`` say how far the
        interval reaches, as shares of the prediction; ``confidence`` is that of `Predictor.fit`.
        """
        return {
            "networks": len(self.measured.networks),
            "taught": len(self.taught),
            **self._errors(),
            "level": self.level,
            "calibrated": self.calibrated,
            "confidence": self.calibration.confidence,
            "down": 1 - exp(-(self.calibration.width or 0.0)),
            "up": exp(self.calibration.width or 0.0) - 1,
            "model": self.calibration.model,
            "coefficients": dict(self.calibration.coefficients),
        }

    def _errors(self) -> dict[str, float | None]:
        """Return how far held-out networks are off."""
        found = self.held_out()
        if not found:
            return dict.fromkeys(("error", "error_90", "spearman", "coverage"))
        measured = [one.measured for one in found]
        predicted = [one.predicted.value for one in found]
        errors = np.abs(np.divide(predicted, measured) - 1)
        return {
            "error": float(np.median(errors)),
            "error_90": float(np.quantile(errors, 0.9)),
            "spearman": ranked(predicted, measured),
            "coverage": sum(one.covered for one in found) / len(found) if self.calibrated else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with all that is needed to predict; `from_dict` is its inverse."""
        return {
            "format": FORMAT,
            "quantity": self.measured.quantity,
            "conditions": dict(self.measured.conditions),
            "parts": [[p.kind, p.spec, p.shape, value] for p, value in self.measured.parts.items()],
            "networks": _listed(self.measured.networks),
            "taught": _listed(self.taught),
            "level": self.level,
            "seed": self.seed,
            "calibration": asdict(self.calibration),
            "quality": self.quality,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Predictor":
        """Read what `to_dict` wrote; nothing is fitted again.

        Raises:
            InvalidTable: if it is something else.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}, not {FORMAT}")
            figures = {
                Part(kind, frozen(spec), frozen(shape)): float(value)
                for kind, spec, shape, value in data["parts"]
            }
            measured = Measured(
                str(data["quantity"]), dict(data["conditions"]), figures, _read(data["networks"])
            )
            calibration = _sound(Calibration(**data["calibration"]), measured)
            predictor = cls(
                measured, calibration, data["level"], data["seed"], _read(data["taught"])
            )
            predictor.quality = dict(data["quality"])
        except (KeyError, TypeError, ValueError, AttributeError, InvalidSpace) as error:
            raise InvalidTable(
                f"not a predictor ({type(error).__name__}: {error}); measure again"
            ) from None
        return predictor


def _sound(calibration: Calibration, measured: Measured) -> Calibration:
    """Return a calibration that fits its parts.

    Raises:
        KeyError: if there is no such model.
        ValueError: if a coefficient is missing, or a number is none or below 0.
    """
    terms, _ = design(calibration.model, [], measured.parts)
    numbers = [calibration.coefficients[term] for term in terms]
    numbers += [calibration.confidence, calibration.width or 0.0, *measured.parts.values()]
    if not all(isinstance(number, int | float) and 0 <= number < inf for number in numbers):
        raise ValueError("a number is none, below 0 or not finite")
    return calibration


def _listed(networks: Mapping[Architecture, float]) -> list[list[Any]]:
    return [[arch.to_dict(), value] for arch, value in networks.items()]


def _read(entries: Any) -> dict[Architecture, float]:
    return {Architecture.from_dict(data): float(value) for data, value in entries}


def _design(measured: Measured, networks: Mapping[Architecture, float]) -> Design:
    """Return networks as numbers.

    Raises:
        TableMissing: if one has a part that is not in the table.
    """
    sizes = Sizes.of(measured.conditions)
    taken = [sizes.parts(arch) for arch in networks]
    for part in {part for whole in taken for part in whole}:
        _figure(measured, part)
    found = {model: design(model, taken, measured.parts) for model in MODELS}
    terms = {model: names for model, (names, _) in found.items()}
    sums = {model: matrix for model, (_, matrix) in found.items()}
    return Design(terms, sums, np.array(list(networks.values()), dtype=float))


def _figure(measured: Measured, part: Part) -> float:
    """Return a part's figure.

    Raises:
        TableMissing: if it has none.
    """
    if part not in measured.parts:
        raise TableMissing(
            f"no {measured.quantity} of {label(part)} {part.spec} in the table; measure the space "
            "again, or narrow it to what was measured"
        )
    return measured.parts[part]

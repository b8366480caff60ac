"""Neural architecture search over token mixers, under FLOPs and latency budgets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mixnas import mixers as mixers
    from mixnas import zoo as zoo
    from mixnas.arch import Architecture as Architecture
    from mixnas.cost.count import count_flops as count_flops
    from mixnas.cost.count import count_params as count_params
    from mixnas.errors import MixnasError as MixnasError
    from mixnas.folding import fuse as fuse
    from mixnas.jobs.audit import audit as audit
    from mixnas.jobs.compare import compare as compare
    from mixnas.jobs.export import export as export
    from mixnas.jobs.measure import measure as measure
    from mixnas.jobs.pick import pick as pick
    from mixnas.jobs.predict import predict as predict
    from mixnas.jobs.replay import replay as replay
    from mixnas.jobs.retrain import retrain as retrain
    from mixnas.jobs.search import search as search
    from mixnas.jobs.sweep import sweep as sweep
    from mixnas.network import Network as Network
    from mixnas.network import build as build
    from mixnas.run import Run as Run
    from mixnas.space import SearchSpace as SearchSpace

_HOMES = {
    "Architecture": "mixnas.arch",
    "MixnasError": "mixnas.errors",
    "Network": "mixnas.network",
    "Run": "mixnas.run",
    "SearchSpace": "mixnas.space",
    "audit": "mixnas.jobs.audit",
    "build": "mixnas.network",
    "compare": "mixnas.jobs.compare",
    "count_flops": "mixnas.cost.count",
    "count_params": "mixnas.cost.count",
    "export": "mixnas.jobs.export",
    "fuse": "mixnas.folding",
    "measure": "mixnas.jobs.measure",
    "pick": "mixnas.jobs.pick",
    "predict": "mixnas.jobs.predict",
    "replay": "mixnas.jobs.replay",
    "retrain": "mixnas.jobs.retrain",
    "search": "mixnas.jobs.search",
    "sweep": "mixnas.jobs.sweep",
}
"""Where each public name lives; it is imported when it is first used."""

_PACKAGES = ("mixers", "zoo")
"""Packages whose own functions are public: `mixnas.mixers.names()`, `mixnas.zoo.create(name)`."""

__all__ = ["__version__", *_HOMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"mixnas.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mixnas' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

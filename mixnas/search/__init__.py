"""The search: ask and tell over Optuna under limits; its own append-only log is the truth."""

from mixnas.search.engine import FeasibleSet, Search
from mixnas.search.export import export_optuna
from mixnas.search.samplers import SAMPLERS
from mixnas.search.trial import Candidate, Trial, best, front, read_trials

__all__ = [
    "SAMPLERS",
    "Candidate",
    "FeasibleSet",
    "Search",
    "Trial",
    "best",
    "export_optuna",
    "front",
    "read_trials",
]

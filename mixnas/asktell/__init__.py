"""The search: ask and tell over Optuna under limits; its own append-only log is the truth."""

from mixnas.asktell.export import export_optuna
from mixnas.asktell.feasible_set import FeasibleSet
from mixnas.asktell.mirror import Mirror, begin_study, check_storage, identity
from mixnas.asktell.samplers import SAMPLERS
from mixnas.asktell.search import POPULATION, Search
from mixnas.asktell.several import Several
from mixnas.asktell.trial import Candidate, Trial, best, front, images, read_trials

__all__ = [
    "POPULATION",
    "SAMPLERS",
    "Candidate",
    "FeasibleSet",
    "Mirror",
    "Search",
    "Several",
    "Trial",
    "begin_study",
    "best",
    "check_storage",
    "export_optuna",
    "front",
    "identity",
    "images",
    "read_trials",
]

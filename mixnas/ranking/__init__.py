"""How far a ranking of networks by their loss is true: statistics of any two lists of losses.

The less the loss, the better; the first place is 1. Nothing here knows of supernets or of files.
"""

from mixnas.ranking.bias import Bias, bias, explained, places
from mixnas.ranking.correlation import (
    against_mean,
    ceiling,
    kendall,
    regret,
    regret_by_chance,
    spearman,
)
from mixnas.ranking.intervals import Estimate, Numbers, bootstrap, proportion
from mixnas.ranking.judged import ENOUGH, LEAST, Ranking

__all__ = [
    "ENOUGH",
    "LEAST",
    "Bias",
    "Estimate",
    "Numbers",
    "Ranking",
    "against_mean",
    "bias",
    "bootstrap",
    "ceiling",
    "explained",
    "kendall",
    "places",
    "proportion",
    "regret",
    "regret_by_chance",
    "spearman",
]

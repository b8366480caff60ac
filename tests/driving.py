"""A search on a Ray cluster that runs: ``python driving.py ADDRESS LOG TRIALS SECONDS MB``.

A driver that can be killed. An error of ours ends it as the command line would: one line, code 2.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from searching import Toy, make_evaluator

from mixnas import cluster
from mixnas.cluster import Crew
from mixnas.errors import MixnasError


def carrying(seconds, weights):
    """Make an evaluator beside an array that every machine gets once."""
    assert weights.all()
    return make_evaluator(seconds)


if __name__ == "__main__":
    address, log, trials, seconds, carried = sys.argv[1:]
    try:
        cluster.evaluate(
            Toy().search(Path(log), trials=int(trials)),
            partial(carrying, float(seconds), np.ones(int(carried) * 1_000_000, np.uint8)),
            Crew(address=address),
            batch=2,
        )
    except MixnasError as error:
        print(f"mixnas: {error}", file=sys.stderr)
        sys.exit(2)

"""What an audit could teach a supernet: its ranking corrected by what the audit found it misplaces.

The loss of a network trained alone is foretold by ridge regression (scikit-learn's) on the
supernet's loss and on the network's traits, always of networks that the regression has not seen;
Kendall's tau says how well they are ranked. ``--added`` looks only at networks near the budget that
were drawn after the first 24: who first looks at a result and then adds to it owes that figure.

    python benchmarks/correction.py
    python benchmarks/correction.py --added
"""

import argparse
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mixnas.ranking import Ranking, ceiling

AUDIT = Path(__file__).parent / "protocol" / "audit.csv"
SEEDS = ["loss_seed0", "loss_seed1"]
FIRST = 24
"""Networks near the budget that the protocol asked for."""
ALPHAS = np.logspace(-1, 3, 9)
"""Strengths of the ridge, of which the regression chooses by what it has seen."""
WIDTH_AND_DEPTH = ["depth", "width"]
TRAITS = [*WIDTH_AND_DEPTH, "ratio", "coarse", "flops"]


def tau(foretold: NDArray[np.float64], rows: pandas.DataFrame) -> str:
    """Return Kendall's tau with its 95 % interval over networks, the audit's own, in words."""
    columns = (SEEDS, ["accuracy_seed0", "accuracy_seed1"], "load")
    told = Ranking(foretold, *(rows[names].to_numpy() for names in columns)).estimates()["tau"]
    return f"{told.value:.3f} [{told.low:.3f}, {told.high:.3f}]"


def foretold(rows: pandas.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    """Return the loss of each network as foretold by a regression on all others."""
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    told = cross_val_predict(model, rows[columns], rows["loss"], cv=LeaveOneOut())
    return np.asarray(told, dtype=np.float64)


def describe(name: str, rows: pandas.DataFrame, shares: list[str]) -> None:
    """Print the tau of each ranking of some networks."""
    between = ceiling(rows[SEEDS].to_numpy())
    print(f"{name}: {len(rows)} networks, one training against the other {between:.3f}")
    print(f"  the supernet                       {tau(rows['supernet_loss'].to_numpy(), rows)}")
    for label, columns in {
        "corrected by width and depth": ["supernet_loss", *WIDTH_AND_DEPTH],
        "by all traits but mixers": ["supernet_loss", *TRAITS],
        "by all traits": ["supernet_loss", *TRAITS, *shares],
        "traits alone, without a supernet": [*TRAITS, *shares],
    }.items():
        print(f"  {label:<34} {tau(foretold(rows, columns), rows)}")


def main() -> None:
    """Print what correction would bring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--added", action="store_true", help="only networks that were added")
    rows = pandas.read_csv(AUDIT)
    shares = [column for column in rows if str(column).startswith("share_")]
    rows = rows[rows["key"] != "winner"].assign(coarse=lambda r: r["stem"] == "conv8")
    rows = rows.assign(**{share: rows[share].fillna(0.0) for share in shares})
    if parser.parse_args().added:
        place = rows["key"].str.extract(r"^inside-(\d+)$")[0].astype(float)
        describe("added later", rows[place > FIRST], shares)
        return
    describe("all", rows, shares)
    describe("within 10 % of the dearest", rows[rows["inside"]], shares)


if __name__ == "__main__":
    main()

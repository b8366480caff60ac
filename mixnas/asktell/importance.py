"""How much each gene matters for the loss, by Optuna's own evaluators."""

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from mixnas.asktell.samplers import quiet
from mixnas.asktell.trial import Trial
from mixnas.space import SearchSpace

ABSENT = "-"
"""The value of a gene that an architecture does not use: a block beyond the depth, say."""


def importances(
    trials: Sequence[Trial], space: SearchSpace, *, trees: int = 16, seed: int = 0
) -> dict[str, float]:
    """Return each gene's share of the variance of the loss, the greatest first; they add up to 1.

    By functional ANOVA over a random forest (Hutter et al., An Efficient Approach for Assessing
    Hyperparameter Importance, ICML 2014). Optuna weighs only what all trials share, so a gene that
    an architecture does not use has a value of its own; a gene without a choice is left out.

    Args:
        trials: complete ones count.
        space: names the genes.
        trees: of the forest.
        seed: of the forest.
    """
    complete = [trial for trial in trials if trial.score]
    genes = [space.genotype(trial.arch) for trial in complete]
    offered = [key for key, choices in space.genes.items() if len(choices) > 1]
    values = {key: [str(gene.get(key, ABSENT)) for gene in genes] for key in offered}
    varying = {key: told for key, told in values.items() if len(set(told)) > 1}
    if not varying or len({trial.loss for trial in complete}) < 2:
        return {}
    choices: dict[str, BaseDistribution] = {
        key: CategoricalDistribution(sorted(set(told))) for key, told in varying.items()
    }
    with quiet():
        study = optuna.create_study()
        for place, trial in enumerate(complete):
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    params={key: told[place] for key, told in varying.items()},
                    distributions=choices,
                    values=[trial.loss],
                )
            )
        evaluator = FanovaImportanceEvaluator(n_trees=trees, seed=seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}

"""A search's trials as an Optuna storage, for its dashboards; a view, never the truth."""

from collections.abc import Iterable
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mixnas.asktell.samplers import quiet
from mixnas.asktell.trial import Trial
from mixnas.space import SearchSpace


def export_optuna(trials: Iterable[Trial], space: SearchSpace, path: Path, name: str) -> None:
    """Write told trials into a new sqlite study that minimises loss and first cost.

    Args:
        trials: as `read_trials` gives them; pending ones are left out.
        space: names the parameters; a trial has its active genes only.
        path: the sqlite file; an existing one is replaced.
        name: of the study.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
    with quiet():
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize", "minimize"]
        )
        study.set_metric_names(["loss", "cost"])
        study.add_trials([frozen(trial, space) for trial in trials if trial.state != "pending"])
    storage.remove_session()
    storage.engine.dispose()
    temporary.replace(path)


def frozen(trial: Trial, space: SearchSpace) -> FrozenTrial:
    """Return a trial as Optuna's own: running, complete, failed, or pruned if beaten in a race.

    Args:
        trial: pending or told.
        space: names the parameters; a trial has its active genes only.
    """
    params = space.genotype(trial.arch)
    attributes = {"id": trial.arch.id, "generation": trial.generation, "origin": trial.origin}
    if trial.score:
        attributes |= {"accuracy": trial.score.accuracy, "images": trial.score.images}
        if trial.score.beaten_by is not None:
            attributes |= {"beaten_by": trial.score.beaten_by, "loss_so_far": trial.loss}
    if trial.reason is not None:
        attributes["reason"] = trial.reason
    return create_trial(
        state=_state(trial),
        params=params,
        distributions={key: CategoricalDistribution(space.genes[key]) for key in params},
        values=[trial.loss, float(trial.cost)] if trial.contends else None,
        user_attrs={**attributes, **trial.costs},
    )


def _state(trial: Trial) -> TrialState:
    if trial.state == "pending":
        return TrialState.RUNNING
    if trial.score is None:
        return TrialState.FAIL
    return TrialState.COMPLETE if trial.contends else TrialState.PRUNED

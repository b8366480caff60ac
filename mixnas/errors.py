"""What can go wrong: one class for each way to fail, all of them `MixnasError`.

A message says what was given, where, what is allowed and what to do, on one line. The command
line prints it and exits with 2; any other exception is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MixnasError(Exception):
    """A mistake that the user can mend; its text is one line with the cure."""


class UnknownMixer(MixnasError):
    """No mixer has that name."""


class InvalidSpace(MixnasError):
    """A search space's file or field does not say what a space must say."""


class NotInSpace(MixnasError):
    """An architecture makes a choice that its space does not offer."""


class InvalidBudget(MixnasError):
    """A budget that cannot be read, or that contradicts itself."""


class BudgetUnreachable(MixnasError):
    """No architecture of the space lies within the budget."""


class UncountedOp(MixnasError):
    """An operator for which no counting rule exists: silence would read as zero cost."""


class TableMissing(MixnasError):
    """A cost table has no entry for a part, or was made under other conditions."""


class InvalidTable(MixnasError):
    """A measured table's file does not say what a table must say, or says what cannot be."""


class RunConflict(MixnasError):
    """A run folder that was made with other settings, or is in use."""


class RunDamaged(RunConflict):
    """A run's file that does not hold what was written there."""


class DataError(MixnasError):
    """A data set that is missing, empty, broken or unfit for the job."""


class InvalidOption(MixnasError):
    """An option outside what is allowed (a number, a name, a device)."""


class TooNoisy(MixnasError):
    """A machine so busy, or so unsteady, that no true time can be read off it now."""


class TrainingDiverged(MixnasError):
    """A training's loss or gradient became non-finite or exploded, and did not recover."""


class OutOfMemory(MixnasError):
    """A training that needs more memory than the device has."""


class EvaluationFailed(MixnasError):
    """So many evaluations failed that the search cannot go on."""


class StorageFull(MixnasError):
    """The disk refused a write; what was there before is still whole."""


class RemoteFailed(MixnasError):
    """An address where runs are kept that cannot be reached, or refuses."""


class UnknownNetwork(MixnasError):
    """No published network has that name."""


class InvalidCheckpoint(MixnasError):
    """A file of weights that cannot be read safely, or that belongs to another network."""


class WorkerLost(MixnasError):
    """A process of several ended, so the others cannot go on."""


class Reported(MixnasError):
    """A mistake of which a process has told the user already."""


class ExportMismatch(MixnasError):
    """An exported model does not compute what its source computes."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? (known: a, b)"``, or only ``"known: a, b"``."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    names = f"known: {', '.join(known)}"
    return f"did you mean '{close[0]}'? ({names})" if close else names

"""Work for many processes, through Ray: a search's trials, or tasks one by one.

Nothing else in mixnas imports Ray. Both start a private cluster on this machine and end it, or
join one that runs.
"""

from mixnas.cluster.crew import Crew
from mixnas.cluster.local import check_dashboard, scratch, visit
from mixnas.cluster.tasks import each
from mixnas.cluster.trials import evaluate

__all__ = ["Crew", "check_dashboard", "each", "evaluate", "scratch", "visit"]

"""`Several`: searches that share an evaluator, run side by side as if they were one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mixnas.asktell.search import Search
from mixnas.asktell.trial import Candidate, Trial
from mixnas.errors import EvaluationFailed
from mixnas.evaluate import Failure, Score


class Several:
    """Searches in turn: while one waits for the last of its generation, another one asks.

    Each is what it would be alone: its asks depend on its own log only. A candidate's number
    tells its search too, so that outcomes find their way back. A search of which too many
    evaluations fail ends alone.

    Args:
        searches: open ones, in the order in which they take turns.

    Attributes:
        searches: the same.
        failed: what ended a search early, by its place.
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self.searches = list(searches)
        self.failed: dict[int, EvaluationFailed] = {}
        self._next = 0

    @property
    def population(self) -> int:
        """Candidates of all the current generations together."""
        return sum(search.population for search in self.searches)

    @property
    def goal(self) -> int:
        """Good evaluations that all searches together are to make."""
        return sum(search.goal for search in self.searches)

    @property
    def complete(self) -> int:
        """Trials of all searches that have a score."""
        return sum(search.complete for search in self.searches)

    @property
    def finished(self) -> bool:
        """Whether no search will ask again, and none waits for an outcome."""
        return all(
            place in self.failed or search.finished for place, search in enumerate(self.searches)
        )

    def ask(self) -> Candidate | None:
        """Hand out the next candidate of whichever search has one; None when none has now."""
        for _ in self.searches:
            place, self._next = self._next, (self._next + 1) % len(self.searches)
            candidate = self._ask(place)
            if candidate is not None:
                return replace(candidate, number=candidate.number * len(self.searches) + place)
        return None

    def tell(self, number: int, outcome: Score | Failure) -> Trial:
        """Record a candidate's outcome with its own search.

        Raises:
            ValueError: if that number was never asked, or has been told.
        """
        own, place = divmod(number, len(self.searches))
        try:
            return self.searches[place].tell(own, outcome)
        except EvaluationFailed as error:
            self.failed[place] = error
            return self.searches[place].trials[own]

    def share(self, figures: Mapping[int, int], place: int) -> int:
        """Return the sum of what is told of one search's candidates.

        Args:
            figures: by the candidates' numbers, as this hands them out.
            place: of the search.
        """
        every = len(self.searches)
        return sum(value for number, value in figures.items() if number % every == place)

    def _ask(self, place: int) -> Candidate | None:
        if place in self.failed:
            return None
        try:
            return self.searches[place].ask()
        except EvaluationFailed as error:
            self.failed[place] = error
            return None

"""`Search`: ask and tell in generations, every step on disk before it counts."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

from mixnas.arch import Architecture
from mixnas.asktell import samplers
from mixnas.asktell import trial as trials_module
from mixnas.asktell.feasible_set import FeasibleSet
from mixnas.asktell.genotype import Genotype
from mixnas.asktell.log import ANEW, Line, Log, reading
from mixnas.asktell.trial import (
    Candidate,
    Genes,
    Rivals,
    Trial,
    ask_line,
    asked,
    outcome,
    tell_line,
)
from mixnas.errors import BudgetUnreachable, EvaluationFailed, InvalidOption, RunConflict
from mixnas.evaluate import Failure, Score
from mixnas.run import differences
from mixnas.space import SearchSpace

FORMAT = 1
POPULATION = 20
"""Architectures of a generation, by default."""
STEM_DRAWS = 4
MUTANTS = 60


class Search:
    """A search under limits, resumed from its log and repeatable from its seed.

    Asks come in generations of a fixed size: a generation begins when all of the one before
    has been told, and the sampler learns its outcomes in the order of their numbers. Each ask
    draws from generators seeded by (seed, number). So the trials are the same whatever the
    number of workers, the order of their answers, and the moments at which the process died.

    Args:
        space: what may be chosen.
        feasible: what lies within the limits; nothing else is ever handed out.
        costs: cost functions by name; the first is the one that the front weighs.
        limits: what ``feasible`` stands for, to tell another search's log (only their text).
        sampler: one of `samplers.SAMPLERS`.
        seed: of every draw.
        trials: how many good evaluations to make; failed ones do not count.
        population: size of a generation.
        racing: error rate of the race that stops evaluations early; None judges every image.
        log: the log's file; an existing one is continued.

    Attributes:
        watch: is shown each trial when it has been asked, and when it has been told; None for
            nobody. It must not raise.

    Raises:
        InvalidOption: for an unknown sampler, or numbers that are not positive.
        RunConflict: if the log is another search's, or in use.
        StorageFull: if the disk is full (from `ask` and `tell` too).
    """

    def __init__(
        self,
        space: SearchSpace,
        feasible: FeasibleSet,
        *,
        costs: Mapping[str, Callable[[Architecture], int]],
        limits: Sequence[object],
        sampler: str = "surrogate",
        seed: int = 0,
        trials: int,
        population: int = POPULATION,
        racing: float | None = None,
        log: str | Path,
    ) -> None:
        _positive("trials", trials)
        _positive("population", population)
        self.space, self.seed, self.population = space, seed, population
        self.racing = racing
        self.exhausted = False
        self._feasible, self._costs, self._goal = feasible, costs, trials
        self._genotype = Genotype(space)
        self._sampler = samplers.create(
            sampler, self._genotype, population, feasible=feasible, cost=self._first_cost, seed=seed
        )
        self._most = feasible.bounds()[1]
        self._stems = self._feasible_stems() if sampler != "random" else ()
        self._trials: list[Trial] = []
        self._complete = 0
        self._best: Trial | None = None
        self._failed: list[Trial] = []
        self._rivals = Rivals()
        self._seen: set[str] = set()
        self._generation, self._begin, self._size = 0, 0, min(population, trials)
        self._out: set[int] = set()
        self.watch: Callable[[Trial], None] | None = None
        self._log = Log(Path(log))
        self._resume(self._header(sampler, limits))

    @property
    def trials(self) -> list[Trial]:
        """All trials asked so far, by number."""
        return list(self._trials)

    @property
    def complete(self) -> int:
        """How many trials have a score."""
        return self._complete

    @property
    def pending(self) -> list[Trial]:
        """The trials asked and not yet told."""
        return [trial for trial in self._trials[self._begin :] if trial.state == "pending"]

    @property
    def goal(self) -> int:
        """How many good evaluations the search is to make."""
        return self._goal

    @property
    def finished(self) -> bool:
        """Whether nothing is pending and nothing more will be asked."""
        return not self.pending and (self.exhausted or self.complete >= self._goal)

    def best(self) -> Trial | None:
        """Return the complete trial of least loss."""
        return self._best

    def front(self) -> list[Trial]:
        """Return the trials that no other beats in both loss and first cost, cheapest first."""
        return trials_module.front(self._trials)

    def ask(self) -> Candidate | None:
        """Hand out the next candidate; None when there is none now, or none any more.

        A trial left pending by an earlier process is handed out first, under its own number.
        There is none *now* while a generation waits for its last outcomes.

        Raises:
            EvaluationFailed: if too many evaluations have failed.
        """
        self._check_failures()
        for trial in self.pending:
            if trial.number not in self._out:
                return self._hand_out(trial)
        if self.exhausted or self.complete >= self._goal:
            return None
        if len(self._trials) - self._begin >= self._size:
            if self.pending:
                return None
            self._close_generation()
        proposed = self._propose(len(self._trials))
        if proposed is None:
            self.exhausted = True
            return None
        self._log.append([ask_line(proposed)])
        self._record(proposed)
        self._show(proposed)
        return self._hand_out(proposed)

    def tell(self, number: int, outcome: Score | Failure) -> Trial:
        """Record a candidate's outcome; a score that is not finite is a failure.

        Raises:
            ValueError: if that number was never asked, or has been told.
            EvaluationFailed: if too many evaluations have failed, this one included.
        """
        if not 0 <= number < len(self._trials) or self._trials[number].state != "pending":
            raise ValueError(f"trial {number} is not waiting for an outcome")
        if isinstance(outcome, Score) and not isfinite(outcome.loss + outcome.accuracy):
            outcome = Failure("non-finite loss")
        self._log.append([tell_line(number, outcome)])
        self._note(number, outcome)
        self._show(self._trials[number])
        self._check_failures()
        return self._trials[number]

    def close(self) -> None:
        """Release the log."""
        self._log.close()

    def _header(self, sampler: str, limits: Sequence[object]) -> Line:
        space = json.dumps(self.space.to_dict(), sort_keys=True)
        racing = {} if self.racing is None else {"racing": self.racing}
        return {
            "format": FORMAT,
            "space": hashlib.sha256(space.encode()).hexdigest()[:16],
            "limits": [str(limit) for limit in limits],
            "costs": list(self._costs),
            "seed": self.seed,
            "sampler": sampler,
            "population": self.population,
            **racing,
        }

    def _resume(self, header: Line) -> None:
        """Take up the log: its header must be ours; its asks and tells are lived again."""
        if not self._log.lines:
            self._log.append([header])
            return
        first, *lines = self._log.lines
        if differing := differences(first, header):
            raise RunConflict(
                f"search log {self._log.path} is of another search: {'; '.join(differing)}; "
                "give another --name, or the same settings to go on"
            )
        for place, line in enumerate(lines, 2):
            with reading(self._log.path, place, cure=ANEW):
                read = asked(line) if "ask" in line else (self._trials[line["tell"]], outcome(line))
            if isinstance(read, Trial):
                if read.generation > self._generation:
                    self._close_generation()
                self._record(read)
            else:
                self._note(read[0].number, read[1])
        self._log.lines.clear()

    def _first_cost(self, arch: Architecture) -> int:
        return next((int(cost(arch)) for cost in self._costs.values()), 0)

    def _record(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._seen.add(trial.arch.id)
        self._sampler.asked(trial)

    def _note(self, number: int, outcome: Score | Failure) -> None:
        """Keep an outcome, and what follows from it."""
        trial = self._trials[number] = self._trials[number].told(outcome)
        if trial.score is None:
            self._failed.append(trial)
            return
        self._complete += 1
        self._best = trials_module.best([trial, *([self._best] if self._best else [])])

    def _show(self, trial: Trial) -> None:
        """Let whoever watches see a trial that was asked or told; it is in the log by now."""
        if self.watch is not None:
            self.watch(trial)

    def _hand_out(self, trial: Trial) -> Candidate:
        """Hand out a trial with its rival: of earlier generations, so it is the same for any N."""
        self._out.add(trial.number)
        if self.racing is None:
            return Candidate(trial.number, trial.arch)
        return Candidate(trial.number, trial.arch, self._rivals.of(trial.cost))

    def _close_generation(self) -> None:
        told = self._trials[self._begin :]
        self._sampler.told(told)
        self._rivals.add(told)
        self._generation += 1
        self._begin = len(self._trials)
        self._size = max(1, min(self.population, self._goal - self.complete))

    def _check_failures(self) -> None:
        failed, allowed = self._failed, max(10, self._goal // 5)
        if len(failed) > allowed:
            raise EvaluationFailed(
                f"{len(failed)} of {len(self._trials)} evaluations failed (at most {allowed} may), "
                f"the last, trial {failed[-1].number}, with: {failed[-1].reason}; "
                "mend the cause and search again under another --name"
            )

    def _propose(self, number: int) -> Trial | None:
        """Return a new feasible architecture as a trial, None if the set has been exhausted."""
        if self._most <= len(self._seen):
            return None
        for origin, arch, genes in self._proposals(number):
            if arch.id not in self._seen and arch in self._feasible:
                costs = {name: int(cost(arch)) for name, cost in self._costs.items()}
                return Trial(number, arch, costs, self._generation, origin, genes)
        return None

    def _proposals(self, number: int) -> Iterator[tuple[str, Architecture, Genes]]:
        """Yield what might be asked next, best idea first; bounded, repeats included."""
        if self._generation == 0:
            yield from self._first(number)
        genes: Genes | None = None
        for redraw in range(self._sampler.redraws if self._generation else 0):
            genes = self._sampler.draw(self._generation, derive(self.seed, number, redraw))
            if genes is None:
                break
            yield self._made_feasible("sampler", genes)
        rng = Random(derive(self.seed, number, "mutant"))
        for _ in range(MUTANTS if genes else 0):
            genes = self._genotype.mutant(genes or (), rng)
            yield self._made_feasible("mutant", genes)
        yield from self._fresh(number)

    def _first(self, number: int) -> Iterator[tuple[str, Architecture, Genes]]:
        """Draw for the first population, the stems in turn: each gets its share of the front."""
        rng = Random(derive(self.seed, number, "first"))
        for _ in range(STEM_DRAWS if self._stems else 0):
            given = {"stem": self._stems[number % len(self._stems)]}
            try:
                arch = self._feasible.sample(rng, given)
            except BudgetUnreachable:  # so rare under this stem that none was found this time
                return
            yield self._encoded("first", arch, rng)

    def _fresh(self, number: int) -> Iterator[tuple[str, Architecture, Genes]]:
        """Draw uniformly, often enough to find the last of a small set."""
        rng = Random(derive(self.seed, number, "fresh"))
        for _ in range(20 * min(1000, 10 + self._most)):
            yield self._encoded("fresh", self._drawn(rng), rng)

    def _drawn(self, rng: Random) -> Architecture:
        """Draw uniformly; between limits so narrow that no draw hits, repair one that misses."""
        try:
            return self._feasible.sample(rng)
        except BudgetUnreachable:
            return self._feasible.nearest(self.space.sample(rng))

    def _made_feasible(self, origin: str, genes: Genes) -> tuple[str, Architecture, Genes]:
        arch = self._genotype.decode(genes)
        if arch in self._feasible:
            return origin, arch, genes
        arch = self._feasible.nearest(arch)
        return "repair" if origin == "sampler" else origin, arch, self._genotype.encode(arch, genes)

    def _encoded(
        self, origin: str, arch: Architecture, rng: Random
    ) -> tuple[str, Architecture, Genes]:
        return origin, arch, self._genotype.encode(arch, self._genotype.random(rng))

    def _feasible_stems(self) -> tuple[Any, ...]:
        found = []
        for stem in self.space.genes["stem"]:
            try:
                self._feasible.sample(Random(self.seed), {"stem": stem})
            except BudgetUnreachable:
                continue
            found.append(stem)
        return tuple(found)


def derive(seed: int, number: int, purpose: int | str) -> int:
    """Return a 32-bit seed for one draw, the same on every machine and in every process."""
    digest = hashlib.sha256(f"{seed}:{number}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InvalidOption(f"--{name} {value}: must be at least 1")

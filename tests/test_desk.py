"""The driver's books without Ray: who has what, since when, and what becomes of it."""

import pytest
from searching import Toy, evaluate, finish

from mixnas import __version__
from mixnas.asktell import Several
from mixnas.cluster import Crew, trials
from mixnas.cluster.crew import Node, told
from mixnas.cluster.desk import ATTEMPTS, PATIENCE, STILLBORN, Desk
from mixnas.errors import InvalidOption
from mixnas.evaluate import Failure


class Clock:
    """Seconds that pass when told to."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture
def desk_of(toy, tmp_path):
    def make(workers=2, batch=3, limit=None, **options):
        search = toy.search(tmp_path / "log", trials=30, population=10, **options)
        desk = Desk(search, lambda: workers, batch, limit=limit, clock=Clock())
        return desk, search

    return make


def answers(candidates):
    return {one.number: evaluate(one.arch) for one in candidates}


def test_a_worker_that_hangs_alone_fails_and_of_a_batch_each_gets_its_time(desk_of):
    desk, search = desk_of(limit=10.0)
    batch = desk.next("a")
    assert [one.number for one in batch] == [0, 1, 2]
    desk.clock.now += 1000
    assert desk.overdue() == []  # the worker has not begun: a cluster may take minutes
    desk.started("a")
    desk.clock.now += 30
    assert desk.overdue() == []  # ten seconds for each of three
    desk.clock.now += 0.1
    assert desk.overdue() == ["a"]
    assert desk.overdue() == []  # it is ended once
    desk.lost("a")
    assert not any(trial.state == "failed" for trial in search.trials)
    alone = [desk.next(worker) for worker in "bc"]
    assert [[one.number for one in each] for each in alone] == [[0], [1]]
    desk.started("b")
    desk.started("c")
    desk.deliver("c", answers(alone[1]))
    desk.clock.now += 10.1
    assert desk.overdue() == ["b"]
    desk.lost("b")
    assert search.trials[0].reason == "no answer within 10 s"
    assert search.trials[1].state == "complete"


def test_an_answer_that_comes_while_its_worker_is_being_ended_counts(desk_of):
    desk, search = desk_of(limit=1.0, batch=1)
    batch = desk.next("a")
    desk.started("a")
    desk.clock.now += 2
    assert desk.overdue() == ["a"]
    desk.deliver("a", answers(batch))
    desk.lost("a")
    assert search.trials[0].state == "complete"


def test_deaths_are_counted_by_candidate_and_not_told_before_the_third(desk_of):
    desk, search = desk_of(batch=2, workers=1)
    desk.deliver("first", {})  # some worker has lived
    desk.next("w0")
    desk.lost("w0")
    for attempt in range(1, ATTEMPTS):
        one, other = (desk.next(f"a{attempt}"), None)
        assert [each.number for each in one] == [0]  # alone, to find out which one kills
        desk.lost(f"a{attempt}")
        other = desk.next(f"b{attempt}") if attempt == 1 else []
        if other:
            assert [each.number for each in other] == [1]
            desk.deliver(f"b{attempt}", answers(other))
            desk.done(f"b{attempt}")
    assert search.trials[0].reason == f"the worker process died, {ATTEMPTS} times (out of memory?)"
    assert search.trials[1].state == "complete"
    assert desk.error is None


def test_workers_that_all_die_at_birth_end_the_search(desk_of):
    desk, _ = desk_of()
    for number in range(STILLBORN):
        assert desk.error is None
        desk.next(f"w{number}")
        desk.lost(f"w{number}")
    assert "6 worker processes died before their first answer" in str(desk.error)
    assert desk.over
    assert desk.next("another") == []


def test_what_a_worker_never_began_is_taken_over_by_an_idle_one(desk_of):
    desk, _ = desk_of(workers=2, batch=5)
    first, second = desk.next("a"), desk.next("b")
    assert len(first) == len(second) == 5
    desk.started("a")
    desk.deliver("a", answers(first))
    assert not desk.wanted()  # the generation's other half is with b, which may start soon
    desk.clock.now += PATIENCE + 1
    assert desk.wanted()
    desk.started("b")
    assert not desk.wanted()


def test_no_more_are_at_work_than_there_is_room_for(toy, tmp_path):
    rooms = [1]
    search = toy.search(tmp_path / "log", trials=30, population=10)
    desk = Desk(search, lambda: rooms[0], 5)
    assert len(desk.next("a")) == 5
    assert desk.next("b") == []
    rooms[0] = 3  # a node has joined the cluster
    assert len(desk.next("b")) == 4  # ten in three parts
    assert len(desk.next("c")) == 1
    desk.done("a")
    assert desk.next("d") == []  # the generation is out


def test_several_searches_side_by_side_are_what_each_is_alone(toy, tmp_path):
    options = [{"seed": 1, "trials": 25}, {"seed": 2, "trials": 40}, {"seed": 1, "trials": 7}]
    alone = [
        finish(toy.search(tmp_path / f"alone{number}", **each)).trials
        for number, each in enumerate(options)
    ]
    searches = [toy.search(tmp_path / f"log{n}", **each) for n, each in enumerate(options)]
    several = Several(searches)
    assert (several.goal, several.population) == (72, 30)
    out = []
    while not several.finished:
        while (candidate := several.ask()) is not None:
            out.append(candidate)
        assert len(out) > 1
        assert len({one.number for one in out}) == len(out)
        while out:  # the last asked is told first
            one = out.pop()
            told = several.tell(one.number, evaluate(one.arch))
            assert told.arch == one.arch
    assert several.complete == 72
    assert [search.trials for search in searches] == alone
    assert several.ask() is None


def test_of_several_searches_one_fails_alone(toy, tmp_path):
    searches = [toy.search(tmp_path / f"log{n}", seed=n, trials=20) for n in range(2)]
    several = Several(searches)
    while (candidate := several.ask()) is not None:
        bad = candidate.number % 2 == 0
        outcome = Failure("no such network") if bad else evaluate(candidate.arch)
        several.tell(candidate.number, outcome)
    assert several.finished
    assert list(several.failed) == [0]
    assert "11 of 11 evaluations failed" in str(several.failed[0])
    assert searches[1].complete == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers=0 is not allowed; give at least 1"),
        ({"cpus": 0}, "cpus=0 for each worker: give at least 0.01"),
        ({"cpus": float("nan")}, "cpus=nan for each worker: give a number, 0 or more"),
        ({"cpus": float("inf")}, "cpus=inf for each worker: give a number, 0 or more"),
        ({"gpus": -1}, "gpus=-1 for each worker: give a number, 0 or more"),
        ({"gpus": 0.001}, "gpus=0.001 for each worker: give at least 0.01"),
        ({"gpus": 1.5}, "a fraction of one or whole GPUs; give 1 or 2"),
        ({"limit": 0.0}, "limit=0 s for an evaluation: give more than nothing"),
        ({"address": "head"}, "address 'head': give auto"),
        ({"address": "ray://head"}, "or ray://HOST:PORT"),
        ({"address": "head:99999"}, "HOST:PORT"),
        ({"address": ""}, "address '': give auto"),
    ],
)
def test_a_crew_refuses_what_no_worker_can_have(options, said):
    with pytest.raises(InvalidOption) as caught:
        Crew(**options)
    assert said in str(caught.value)


def test_how_many_workers_fit():
    assert Crew(cpus=0.5).fitting(4, 0) == 8
    assert Crew(cpus=1, gpus=0.25).fitting(16, 2) == 8
    assert Crew(cpus=1, gpus=0.1).fitting(16, 1) == 10
    assert Crew(cpus=4, gpus=1).fitting(6, 8) == 1
    assert Crew(cpus=2).fitting(1, 0) == 0
    assert Crew(cpus=0.5).threads == 1
    assert Crew(cpus=3).threads == 3
    assert Crew(cpus=0.5, gpus=0.25).each() == "0.5 CPUs and 0.25 GPUs"
    nodes = [Node("a", "10.0.0.1", 1, 0), Node("b", "10.0.0.2", 8, 2)]
    assert told(nodes) == "2 nodes, 9 CPUs, 2 GPUs"
    assert told(nodes[:1]) == "1 node, 1 CPU"


def test_a_worker_of_another_version_judges_nothing():
    worker = object.__new__(trials._Worker)
    worker.setup({"batch": ""}, b"", [], 1, "0.0.1")
    said = worker.step()["broken"]
    assert f"has mixnas {__version__}, the driver 0.0.1; install the same on all" in said

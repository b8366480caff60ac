"""Networks timed whole though no limit asks for it: some seconds, or the reason why not."""

import pytest
from synthetic_device import Device, takes
from torch import nn

from mixnas.jobs.whole import TOLD, told
from mixnas.timing.conditions import Conditions
from mixnas.timing.stopwatch import LONGEST

NETWORKS = [nn.Linear(8, size) for size in (2, 3, 4)]
SHAPE = (3, 8, 8)


def test_on_a_quiet_machine_all_are_timed():
    found = told(Device()(Conditions.of("cpu")), NETWORKS, SHAPE)
    assert [span["median"] for span in found] == [takes(one, SHAPE) for one in NETWORKS]


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_after_a_refusal_none_is_tried_and_all_have_its_reason(refused):
    device = Device(refuses={refused})
    found = told(device(Conditions.of("cpu")), NETWORKS, SHAPE)
    assert device.figures == refused
    assert [isinstance(span, str) for span in found] == [n + 1 >= refused for n in range(3)]
    assert set(found[refused - 1 :]) == {"busy machine: a test says so; repeat later"}


def test_the_time_is_that_of_all_together():
    device = Device()
    watch = device(Conditions.of("cpu"))
    found = told(watch, NETWORKS, SHAPE, span=0)
    assert device.figures == 1  # the first is tried in any case
    assert found[1:] == ["the 0 s for timing were over"] * 2
    told(watch, NETWORKS, SHAPE)
    assert 0 < watch.patience * LONGEST <= TOLD

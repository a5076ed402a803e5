"""What is recorded, and what a recording holds on to."""

import pytest
import torch

from vscan.capture.recorder import EagerRecorder, NotRecorded, recorder_for
from vscan.capture.regions import Region
from vscan.select.remembered import holding, numbers_on, remembered

CPU = torch.device("cpu")


def test_results_lie_in_the_same_buffers_after_every_run():
    given = torch.ones(3)
    region = Region(EagerRecorder(), lambda: [given * 2, given.sum()])
    places = [part.data_ptr() for part in region.outputs]
    given.fill_(5)
    region.replay()
    assert [part.tolist() for part in region.outputs] == [[10, 10, 10], 15]
    assert [part.data_ptr() for part in region.outputs] == places


def test_what_ran_and_could_not_be_recorded_runs_again():
    class Fails(EagerRecorder):
        def record(self, function):
            function()
            raise NotRecorded("a read")

    given = torch.ones(3)
    region = Region(Fails(), lambda: [given * 2])
    assert (region.failed, region.outputs[0].tolist()) == ("a read", [2, 2, 2])
    given.fill_(2)
    region.replay()
    assert region.outputs[0].tolist() == [4, 4, 4]


def test_a_recording_holds_the_tables_that_it_read():
    """However many others are made since: a graph reads them where they lay."""
    region = Region(EagerRecorder(), lambda: [numbers_on((1, 2, 3), CPU) + 1])
    place = region.held[0].data_ptr()
    for number in range(100):
        numbers_on((number,), CPU)
    assert numbers_on((1, 2, 3), CPU).data_ptr() != place
    assert region.held[0].tolist() == [1, 2, 3]
    region.replay()
    assert len(region.held) == 1


def test_tables_are_made_once_and_serve_where_gradients_are_recorded():
    made = []

    @remembered(maxsize=2)
    def table(number):
        made.append(number)
        return torch.zeros(number)

    with torch.inference_mode():
        first = table(3)
    found = []
    with holding(found):
        assert table(3) is first
    assert made == [3]
    assert found == [first]
    assert not first.is_inference()


@pytest.mark.parametrize(("device", "expected"), [("cpu", EagerRecorder), ("meta", type(None))])
def test_what_records_on_a_device(device, expected):
    assert type(recorder_for(torch.device(device))) is expected


@pytest.mark.gpu
def test_a_graph_gives_what_the_function_gives():
    device = torch.device("cuda")
    recorder, given = recorder_for(device), torch.ones(1000, device=device)
    regions = [Region(recorder, lambda by=by: [(given * by).cumsum(0), given.sum()]) for by in (2, 3)]
    for value in (1, 5, 7):
        given.fill_(value)
        for by, region in zip((2, 3), regions, strict=True):
            region.replay()
            assert region.failed is None
            assert torch.equal(region.outputs[0], (given * by).cumsum(0))


@pytest.mark.gpu
def test_a_read_inside_is_found_while_recording_and_the_device_goes_on():
    device = torch.device("cuda")
    given = torch.ones(3, device=device)
    region = Region(recorder_for(device), lambda: [given * given.sum().item()])
    assert region.failed
    region.replay()
    assert region.outputs[0].tolist() == [3, 3, 3]
    assert Region(recorder_for(device), lambda: [given * 2]).failed is None

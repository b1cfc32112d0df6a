import pytest
import torch

from kullback.kit.threads import one_thread
from kullback.recipes import two_modes


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_inside_and_as_many_as_before_afterwards(two_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 2


def test_two_modes_trains_with_one_thread_and_gives_the_others_back(two_threads, monkeypatch):
    seen, train = [], two_modes.train
    monkeypatch.setattr(two_modes, "train", lambda *a: seen.append(torch.get_num_threads()) or train(*a))
    two_modes.run(seeds=1, steps=2)
    assert seen == [1, 1]
    assert torch.get_num_threads() == 2

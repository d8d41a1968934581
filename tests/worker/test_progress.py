"""What a model says of its progress reaches the daemon sparsely, and as plain numbers."""

import pytest

from swapd.worker.progress import number, progress_of


def test_the_daemon_hears_of_the_first_and_of_the_last():
    told = []
    progress = progress_of("load", told.append)
    for done in range(100_001):
        progress(done, 100_000, "layers")
    assert told[0].params == {"step": "load", "done": 0, "total": 100_000, "unit": "layers"}
    assert told[-1].params["done"] == 100_000
    assert len(told) < 1000


@pytest.mark.parametrize("arguments", [(), (None,), ("x", object()), (float("nan"), float("inf"), b"?")])
def test_nonsense_is_told_as_unknown_and_never_raises(arguments):
    told = []
    progress_of("load", told.append)(*arguments)
    assert told[0].params["done"] is None


@pytest.mark.parametrize(
    ("value", "plain"), [(3, 3), (2.5, 2.5), (2.0, 2), (None, None), ("x", None), (float("inf"), None)]
)
def test_a_models_figures_become_json(value, plain):
    assert number(value) == plain

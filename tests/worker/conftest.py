"""Real workers for every test here; all are ended with the test."""

import pytest
from support.worker_client import spawner


@pytest.fixture
def spawn():
    with spawner() as made:
        yield made

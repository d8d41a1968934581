import subprocess

import pytest
from support.gpu_host import Gpus


@pytest.fixture
def gpus(tmp_path):
    """One GPU of 24 GiB, gpu0."""
    return Gpus(tmp_path, 24)


@pytest.fixture
def other():
    """A process that is not swapd's."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()

"""Weights on a real GPU: pinned, copied, parked, woken; and swaps of a real daemon between models that hold them."""

import pytest
from support.daemon_host import APPS, Crowd, Daemon
from support.safetensors_files import pattern, write

from swapd.worker.weights import Weights

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

MIB = 1 << 20
BLOCK = pattern(MIB)
SIZE_MIB = 1024
PROMISE = "4GiB"  # what each model is promised: 1 GiB of weights and torch's context


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    shape = [SIZE_MIB * MIB]
    return write(tmp_path_factory.mktemp("weights") / "model.safetensors", {"w": ("U8", shape, BLOCK * SIZE_MIB)})


def free_bytes():
    return torch.cuda.mem_get_info()[0]


def test_staged_weights_are_pinned_and_arrive_whole(path):
    weights = Weights(path)
    weights.stage()
    host = torch.frombuffer(weights._memory, dtype=torch.uint8)
    assert host.is_pinned()
    assert host[-4096:].is_pinned()
    told = []
    loaded = weights.load("cuda", lambda done, total, unit: told.append((done, total, unit)))["w"]
    assert loaded.device.type == "cuda"
    assert torch.equal(loaded.cpu(), host[: loaded.numel()])
    assert told[-1] == (weights.size_bytes, weights.size_bytes, "bytes")


def test_parking_gives_the_memory_back_and_waking_fills_it_again(path):
    weights = Weights(path)
    loaded = weights.load("cuda")["w"]
    total = loaded.sum(dtype=torch.int64).item()
    before = free_bytes()
    weights.park()
    assert free_bytes() - before >= (SIZE_MIB - 64) * MIB
    weights.wake()
    assert loaded.sum(dtype=torch.int64).item() == total


def test_without_pinning_it_arrives_all_the_same(path):
    weights = Weights(path, pin=False)
    loaded = weights.load("cuda")["w"]
    assert bytes(loaded[-MIB:].cpu().numpy()) == BLOCK
    assert weights.took.pin_s is None


# --- swaps -------------------------------------------------------------------------------------------------------


def model(name, path):
    return f"""
[models.{name}]
app = "torch_app:Engine"
directory = "{APPS}"
device_memory = "{PROMISE}"
stage = true
env = {{ NAME = "{name}", DEVICE = "cuda", WEIGHTS = "{path}" }}
[[models.{name}.probes]]
request = {{ path = "/sum" }}
expect = {{ status = 200, within = "30s", json = {{ device = "cuda", sum = {sum(BLOCK) * SIZE_MIB} }} }}
"""


@pytest.fixture
def daemon(path):
    gpu = '[devices.gpu0]\nkind = "nvml"\nmatch = "0"\n'
    with Daemon([model("a", path), model("b", path)], devices=gpu, patience_s=120) as daemon:
        yield daemon


def steps(record):
    return [step["name"] for step in record["steps"]]


def test_in_place_the_new_model_is_staged_first_and_the_old_one_parked_and_woken(daemon):
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("b", strategy="in-place")
        crowd.more()
        assert record["phase"] == "Soaking", record
        assert " ".join(steps(record)) == "spawn stage hold drain park confirm load warm verify switch soak"
        assert record["kept"] == "parked"
        crowd.mark()
        back = daemon.wait(daemon.call("rollback", service="chat")["id"], ("Canceled", "Failed"))
        crowd.more()
    crowd.check()
    assert back["phase"] == "Canceled", back
    assert "restore: wake" in steps(back)
    assert daemon.model() == "a"


def test_both_stand_side_by_side_for_a_dual_swap(daemon):
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("b", strategy="dual")
        crowd.more()
    crowd.check()
    assert record["phase"] == "Soaking", record
    [peak] = record["peak_memory_bytes"].values()
    assert peak > 2 * SIZE_MIB * MIB

"""The bench of weights on a GPU, on the path that needs none: it must be ready where there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu
from bench.harness import ROOT


def test_it_runs_without_a_gpu_and_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--quick", "--cpu", "--gb", "0.01"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout
    result = json.loads(Path(ran.stdout.splitlines()[-1]).read_text())
    assert [row["strategy"] for row in result["results"][0]["swaps"]] == ["in-place", "dual"]
    in_place = result["results"][0]["swaps"][0]
    assert list(in_place["steps_ms"])[:3] == ["spawn", "stage", "hold"]
    assert in_place["took"]["read_s"] is not None


@pytest.mark.parametrize(("size", "word"), [(1 << 60, "disk"), (10 * gpu.GB, "device")])
def test_a_size_that_does_not_fit_is_left_out_and_said(size, word, monkeypatch):
    monkeypatch.setattr(gpu, "OVERHEAD_BYTES", -size)  # host memory is never what is missing
    found = {"memory_bytes": -1}
    if word == "device":
        monkeypatch.setattr(gpu.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 62}))
    assert word in gpu.one_size(size, "cuda", found, 1)["skipped"]


def test_weights_are_as_large_as_asked_and_their_sum_is_known():
    with gpu.weights_of(1_000_000) as (path, total):
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        assert len(data) - header == 1_000_000
        assert total == sum(data[header : header + 4096]) + sum(data[-4096:])

"""A server's words, as it prints them: which say that memory ran out."""

import pytest

from swapd.core.errors import COMMAND_NOT_FOUND, LOAD_FAILED, OUT_OF_MEMORY, Problem
from swapd.core.out_of_memory import MAX_LINE, said_line, told_by_its_log

SAYS = [
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
    "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size 4294967296",
    "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 32212254752",
    "(EngineCore_0 pid=77) ValueError: No available memory for the cache blocks. Try increasing"
    " `gpu_memory_utilization` when initializing the engine.",
    "ValueError: Free memory on device (3.21/23.64 GiB) on startup is less than desired GPU memory utilization (0.9,"
    " 21.28 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB",
    "RuntimeError: CUDA error: CUDA_ERROR_OUT_OF_MEMORY",
    "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 214748 bytes.",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "OSError: [Errno 12] Cannot allocate memory",
    "MemoryError",
]
SAYS_NOT = [
    "I cannot find my weights",
    "llama_model_loader: - kv  12: general.memory_error u32 = 0",
    "INFO: model weights take 14.99GiB; non_torch_memory takes 0.05GiB; the rest of the memory reserved for KV Cache",
    "an OOM report",
]


@pytest.mark.parametrize("line", SAYS)
def test_memory_that_ran_out_is_told_from_other_failures(line):
    lines = (*SAYS_NOT, line, *["RuntimeError: Engine core initialization failed. See root cause above."] * 50)
    assert said_line(lines) == line
    told = told_by_its_log(Problem(LOAD_FAILED, "vllm ended: exit code 1.", {"exit_code": 1}), lines)
    assert (told.code, told.details) == (OUT_OF_MEMORY, {"exit_code": 1})
    assert told.message == f"vllm ended: exit code 1. Memory ran out: {line}"


@pytest.mark.parametrize("line", SAYS_NOT)
def test_other_words_about_memory_are_not_taken_for_it(line):
    problem = Problem(LOAD_FAILED, "x")
    assert told_by_its_log(problem, (line,)) is problem


def test_what_cannot_be_for_lack_of_memory_keeps_its_code():
    problem = Problem(COMMAND_NOT_FOUND, "there is no llama-server")
    assert told_by_its_log(problem, SAYS) is problem


def test_a_line_without_end_is_cut():
    assert len(said_line(["out of memory " + "x" * 10_000])) == MAX_LINE

"""A model's exceptions in the words of its author's code."""

import os
import subprocess
import sys
import textwrap

import pytest

from swapd.core.errors import IMPORT_FAILED, LOAD_FAILED, OUT_OF_MEMORY
from swapd.worker.failures import describe, is_out_of_memory, own_frame


def raised(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


@pytest.fixture
def model(tmp_path):
    """A model module in its own directory, as source; returns the exception that its `load` raises."""

    def run(source):
        path = tmp_path / "my_model.py"
        path.write_text(textwrap.dedent(source))
        names = {}
        exec(compile(path.read_text(), str(path), "exec"), names)
        return raised(names["load"])

    return run


def test_the_models_own_line_is_named(model, tmp_path):
    error = model("""
        import json
        def load():
            json.loads("{")
    """)
    problem = describe(LOAD_FAILED, "the load hook failed", error, str(tmp_path))
    assert problem.code == LOAD_FAILED
    assert problem.message.startswith("the load hook failed: JSONDecodeError: Expecting property name")
    assert problem.message.endswith("(my_model.py:4, in load)")


def test_a_frame_of_the_models_directory_is_preferred_to_a_librarys(model, tmp_path):
    error = model("""
        import subprocess
        def load():
            subprocess.run(["/no/such/command"])
    """)
    assert own_frame(error, str(tmp_path)) == "my_model.py:4, in load"


def test_without_a_directory_the_last_frame_is_named(model, tmp_path):
    error = model("""
        def load():
            raise ValueError("x")
    """)
    assert own_frame(error, "") == f"{tmp_path}/my_model.py:3, in load"


def test_a_syntax_error_names_its_line(tmp_path):
    error = raised(lambda: compile("x = 1\ndef load(:", str(tmp_path / "m.py"), "exec"))
    assert describe(IMPORT_FAILED, "importing m failed", error, str(tmp_path)).message.endswith("(m.py:2)")


def test_a_missing_module_says_where_to_install_it():
    error = raised(lambda: __import__("no_such_module_anywhere"))
    message = describe(IMPORT_FAILED, "importing m failed", error).message
    assert "there is no module 'no_such_module_anywhere'" in message
    assert sys.executable in message


def test_many_lines_become_one_and_long_texts_are_cut():
    message = describe(LOAD_FAILED, "load", ValueError("a\n  b\n" + "x" * 100_000)).message
    assert message.startswith("load: ValueError: a b xxx")
    assert len(message) < 2100


def test_an_exception_that_cannot_be_printed_is_still_described():
    class Rude(Exception):
        def __str__(self):
            raise RuntimeError

    assert describe(LOAD_FAILED, "load", Rude()).message == "load: Rude"


def chained(error, cause):
    error.__cause__ = cause
    return error


class OutOfMemoryError(Exception):
    """As torch.OutOfMemoryError is named."""


class Group(Exception):
    def __init__(self, *members):
        super().__init__("group")
        self.exceptions = members


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("x"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        chained(OSError("cannot load"), MemoryError()),
        Group(ValueError("x"), MemoryError()),
    ],
    ids=repr,
)
def test_running_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)
    assert describe(LOAD_FAILED, "load", error).code == OUT_OF_MEMORY


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(ValueError("the memory of this room"))
    looped = ValueError("x")
    looped.__context__ = looped
    assert not is_out_of_memory(looped)


def test_an_exit_says_its_status():
    assert "sys.exit(3)" in describe(LOAD_FAILED, "load", SystemExit(3)).message


def test_swapds_and_the_import_systems_frames_never_count(tmp_path):
    """Needs an import of its own, in a process of its own."""
    (tmp_path / "broken.py").write_text("import importlib\nraise ValueError('x')\n")
    code = """
        import importlib
        from swapd.worker.failures import own_frame
        try:
            importlib.import_module("broken")
        except ValueError as error:
            print(own_frame(error, ""))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.strip() == f"{tmp_path}/broken.py:2"

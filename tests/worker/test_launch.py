"""The launcher, in interpreters of all kinds: one that has no swapd, one that lacks a library, one that is too old."""

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import httptools
import pytest
import uvicorn
import uvloop
from support.worker_client import APPS, LAUNCH, REPO, Client, Refused, ask_once

ALLOWED = {"uvicorn", "uvloop", "httptools", "swapd", "_uvloop", "__mp_main__"}
UVICORNS_OWN = {"click", "h11", "websockets", "typing_extensions", "colorama", "anyio", "sniffio"}
PARTS = (
    "swapd.core.process_tree",
    *("swapd.worker", "swapd.front", "swapd.wire.worker", "swapd.wire.peer"),
    *("swapd.core.errors", "swapd.core.states", "swapd.core.handover", "swapd.core.process_tree"),
    *("swapd.core.window", "swapd.core.agreement", "swapd.core.json_values", "swapd.core.shadow_samples"),
)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter without swapd, and with nothing but what `link` puts into it."""
    root = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True, timeout=60)
    return root


def site_packages(venv):
    [path] = venv.glob("lib/python3*/site-packages")
    return path


@pytest.fixture
def link(bare_python):
    """Put libraries of this interpreter into the bare one, and take them out again."""
    made = []

    def add(*modules):
        for module in modules:
            file = Path(module.__file__)
            source = file.parent if file.name == "__init__.py" else file
            target = site_packages(bare_python) / source.name
            target.symlink_to(source)
            made.append(target)

    yield add
    for path in made:
        path.unlink()


def uvicorns_dependencies():
    names = ["click", "h11"] + (["typing_extensions"] if sys.version_info < (3, 11) else [])
    return [importlib.import_module(name) for name in names]


def test_a_models_interpreter_needs_no_swapd(spawn, bare_python, link):
    link(uvicorn, uvloop, httptools, *uvicorns_dependencies())
    python = str(bare_python / "bin" / "python")
    found = subprocess.run([python, "-c", "import swapd"], capture_output=True, cwd="/", timeout=60, check=False)
    assert found.returncode != 0
    worker = spawn(python=python)
    client = worker.loaded()
    assert ask_once(worker.http, "/x")[0] == 200
    client.request("stop")
    assert worker.wait() == 0


def test_an_interpreter_that_lacks_a_library_says_so_on_the_channel_and_in_the_log(spawn, bare_python, link):
    link(uvicorn)
    worker = spawn(python=str(bare_python / "bin" / "python"))
    with pytest.raises(Refused) as caught:
        worker.greeted()
    assert caught.value.code == "IMPORT_FAILED"
    assert "lacks uvloop, httptools: install with" in caught.value.message
    assert worker.wait() == 78
    assert worker.log == f"swapd worker: {caught.value.message}\n"


def test_a_library_that_does_not_import_is_told(spawn, bare_python, link):
    broken = site_packages(bare_python) / "uvloop.py"
    broken.write_text("raise OSError('built for another machine')\n")
    link(uvicorn, httptools, *uvicorns_dependencies())
    try:
        worker = spawn(python=str(bare_python / "bin" / "python"))
        with pytest.raises(Refused, match="cannot import uvloop: OSError: built for another machine"):
            worker.greeted()
        assert worker.wait() == 78
    finally:
        broken.unlink()


def test_a_uvicorn_that_is_too_old_is_told(spawn, bare_python, link):
    old = site_packages(bare_python) / "uvicorn.py"
    old.write_text("__version__ = '0.39.0'\n")
    link(uvloop, httptools)
    try:
        worker = spawn(python=str(bare_python / "bin" / "python"))
        with pytest.raises(Refused, match=r"has uvicorn 0\.39\.0, which is older than 0\.40"):
            worker.greeted()
        assert worker.wait() == 78
    finally:
        old.unlink()


def test_a_python_that_is_too_old_says_so(tmp_path):
    """No old Python is here: this one claims to be."""
    pretend = tmp_path / "old.py"
    pretend.write_text(
        textwrap.dedent(f"""
            import runpy, sys
            sys.version_info = (3, 8, 0)
            sys.argv[:] = [{str(LAUNCH)!r}, {str(tmp_path)!r}]
            runpy.run_path({str(LAUNCH)!r}, run_name="__main__")
        """)
    )
    done = subprocess.run([sys.executable, str(pretend)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "is Python 3.8: a model's interpreter must be Python 3.10 or newer" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_launcher_compiles_on_an_old_python():
    import ast

    ast.parse(LAUNCH.read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--gate"]])
def test_wrong_arguments_print_the_usage(arguments):
    done = subprocess.run(
        [sys.executable, str(LAUNCH), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "usage: launch.py [--gate] WORKER_DIR\n")


def test_a_worker_without_a_spec_cannot_start(tmp_path):
    done = subprocess.run(
        [sys.executable, str(LAUNCH), str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "spec.json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_may_have_modules_named_like_the_workers(spawn, tmp_path):
    """Neither shadows the other: the launcher's directory is not on the model's path."""
    source = (APPS / "echo_app.py").read_text()
    for name in ("main", "channel", "spec", "launch", "engines"):
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "model.py").write_text("import main, channel, spec, launch, engines\napp = spec.app\n")
    worker = spawn("model:app", directory=tmp_path)
    worker.loaded()
    assert ask_once(worker.http)[0] == 200


def test_the_daemons_libraries_are_not_on_the_models_path(spawn, bare_python, link, tmp_path):
    (tmp_path / "looks.py").write_text(
        textwrap.dedent("""
            import json, sys
            async def app(scope, receive, send):
                if scope["type"] != "http":
                    raise NotImplementedError
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": json.dumps(sys.path).encode()})
        """)
    )
    link(uvicorn, uvloop, httptools, *uvicorns_dependencies())
    worker = spawn("looks:app", directory=tmp_path, python=str(bare_python / "bin" / "python"))
    worker.loaded()
    import json

    path = json.loads(ask_once(worker.http)[2])
    assert path[0] == str(tmp_path)
    assert not [entry for entry in path if entry.startswith(str(REPO))]
    assert str(site_packages(bare_python)) in path


def test_multiprocessing_children_of_a_model_do_not_become_workers(spawn, tmp_path):
    """ "spawn" runs the main module's file again in the child."""
    (tmp_path / "spawns.py").write_text(
        textwrap.dedent("""
            import multiprocessing, os
            def square(number):
                return number * number
            class Engine:
                def load(self):
                    with multiprocessing.get_context("spawn").Pool(1) as pool:
                        self.answer = str(pool.map(square, [3])).encode()
                async def __call__(self, scope, receive, send):
                    if scope["type"] != "http":
                        raise NotImplementedError
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body", "body": self.answer})
        """)
    )
    worker = spawn("spawns:Engine", directory=tmp_path)
    worker.loaded()
    assert ask_once(worker.http)[2] == b"[9]"


def test_a_worker_imports_nothing_of_swapd_but_its_parts():
    code = """
        import sys
        before = set(sys.modules)
        import swapd.worker.main, swapd.worker.refusal
        import swapd.front.direct, swapd.front.gate
        print(*sorted(set(sys.modules) - before), sep="\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO)},
    )
    loaded = done.stdout.split()
    top = {name.partition(".")[0] for name in loaded if "cython" not in name} - set(sys.stdlib_module_names)
    assert top <= ALLOWED | UVICORNS_OWN
    own = {name for name in loaded if name.startswith("swapd.")} - {"swapd.core", "swapd.wire"}
    assert not {name for name in own if not name.startswith(PARTS)}


def test_a_second_worker_in_the_same_directory_takes_the_socket_over(spawn):
    """A daemon never does this; a stale socket of a dead worker must not keep the next from starting."""
    worker = spawn()
    worker.greeted()
    worker.process.kill()
    worker.wait()
    assert worker.control.exists()
    with (worker.dir / "log").open("ab") as log:
        worker.process = subprocess.Popen(
            [sys.executable, str(LAUNCH), str(worker.dir)],
            env={"PATH": os.environ["PATH"]},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers():
        try:
            client = Client(worker.control)
        except ConnectionRefusedError:
            return False
        client.hello(worker.id)
        client.close()
        return True

    from support.worker_client import wait_until

    assert wait_until(answers, "the new one answers")

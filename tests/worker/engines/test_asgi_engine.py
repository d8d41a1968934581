"""From `module:attr` to an app: what is accepted, in which order hooks run, and what each failure says.

The engine is driven here without a process around it; tests/worker/test_verbs.py has the real ones.
"""

import asyncio
import importlib
import sys

import pytest
from support.worker_client import APPS

from swapd.core.errors import HOOK_FAILED, IMPORT_FAILED, LOAD_FAILED, NOT_SUPPORTED, OUT_OF_MEMORY, SwapdError
from swapd.worker.engines.asgi import AsgiEngine

APP_MODULES = ("engines_app", "failing_lifespan_app", "echo_app")


@pytest.fixture(autouse=True)
def fresh_apps(monkeypatch):
    monkeypatch.syspath_prepend(str(APPS))
    importlib.invalidate_caches()
    yield
    for name in APP_MODULES:
        sys.modules.pop(name, None)


def engine(app, directory=str(APPS)):
    return AsgiEngine(app, directory)


def no_progress(*figures, **options):
    pass


def calls():
    return sys.modules["engines_app"].CALLS


async def failed(awaitable):
    with pytest.raises(SwapdError) as caught:
        await awaitable
    return caught.value


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_hooks_run_in_order_and_load_may_set_the_app():
    async def scenario():
        model = engine("engines_app:SyncEngine")
        assert model.hooks == ["stage", "park", "wake"]
        seen = []
        await model.stage(lambda done, total, unit: seen.append((done, total, unit)))
        app = await model.load(no_progress)
        await model.park(no_progress)
        await model.wake(no_progress)
        await model.unload()
        assert app is sys.modules["engines_app"].answer
        assert calls() == ["stage", "load", "park", "wake"]
        assert seen[-1] == (100, 100, "bytes")

    run(scenario())


def test_async_hooks_and_an_engine_that_is_itself_the_app():
    async def scenario():
        model = engine("engines_app:AsyncEngine")
        seen = []
        app = await model.load(lambda *figures, **options: seen.append((figures, options)))
        assert type(app).__name__ == "AsyncEngine"
        assert seen == [((1, 2), {"unit": "layers"}), ((2, 2), {"unit": "layers"})]
        await model.park(no_progress)
        assert calls() == ["load", "park"]

    run(scenario())


@pytest.mark.parametrize(
    "app",
    ["engines_app:Plain", "engines_app:instance", "engines_app:annotated", "engines_app:Holder.app"],
)
def test_every_shape_of_model_is_loaded(app):
    assert callable(run(engine(app).load(no_progress)))


def test_lifespan_state_is_kept():
    async def scenario():
        model = engine("echo_app:app")
        await model.load(no_progress)
        assert model.lifespan_state == {"weights": "w1"}
        await model.unload()

    run(scenario())


@pytest.mark.parametrize(
    ("app", "code", "words"),
    [
        ("no_such_model:app", IMPORT_FAILED, "there is no module 'no_such_model' in"),
        ("echo_app", IMPORT_FAILED, 'not of the form "module:attribute"'),
        ("echo_app:", IMPORT_FAILED, 'not of the form "module:attribute"'),
        ("../echo_app:app", IMPORT_FAILED, 'not of the form "module:attribute"'),
        ("echo_app:create()", IMPORT_FAILED, 'not of the form "module:attribute"'),
        ("echo_app:ap", IMPORT_FAILED, "echo_app has no attribute 'ap' (app = 'echo_app:ap'); did you mean 'app'?"),
        ("engines_app:Plain.application", IMPORT_FAILED, "Plain has no attribute 'application'"),
        ("engines_app:number", IMPORT_FAILED, "int is not callable"),
        ("engines_app:create_app", IMPORT_FAILED, "looks like a factory"),
        ("engines_app:wsgi_app", IMPORT_FAILED, "looks like a WSGI app"),
        ("engines_app:NeedsArguments", IMPORT_FAILED, "made without arguments, but: missing a required"),
        ("engines_app:InitFails", LOAD_FAILED, "FileNotFoundError: weights.bin is not there (engines_app.py:"),
        ("engines_app:LoadFails", LOAD_FAILED, "the load hook failed: ValueError: bad weights (engines_app.py:"),
        ("engines_app:LoadExits", LOAD_FAILED, "the model called sys.exit(3) (engines_app.py:"),
        ("engines_app:OutOfMemory", OUT_OF_MEMORY, "the load hook failed: MemoryError (engines_app.py:"),
        ("engines_app:CudaOutOfMemory", OUT_OF_MEMORY, "could not read the weights"),
        ("engines_app:NoApp", LOAD_FAILED, "set self.app to an ASGI app"),
        ("failing_lifespan_app:raises", LOAD_FAILED, "lifespan startup failed: ValueError: weights are corrupt (fail"),
        ("failing_lifespan_app:says_failed", LOAD_FAILED, "no weights in /srv"),
        ("failing_lifespan_app:says_failed_and_raises", OUT_OF_MEMORY, "MemoryError (failing_lifespan_app.py:"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(app, code, words):
    error = run(failed(engine(app).load(no_progress)))
    assert (error.code, words in error.message) == (code, True), error.message


def test_a_module_that_fails_on_import_is_told_by_its_own_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, source in {
        "imports_missing_model": "import no_such_library",
        "wrong_syntax_model": "x = 1\ndef load(:",
        "exiting_model": "import sys\nsys.exit('no licence')",
        "oom_model": "raise MemoryError",
    }.items():
        (tmp_path / f"{name}.py").write_text(source)
    importlib.invalidate_caches()

    def why(name):
        error = run(failed(engine(f"{name}:app", str(tmp_path)).load(no_progress)))
        return error.code, error.message

    code, message = why("imports_missing_model")
    assert code == IMPORT_FAILED
    assert "there is no module 'no_such_library' (imports_missing_model.py:1)" in message
    assert "python =" in message
    code, message = why("wrong_syntax_model")
    assert (code, message) == (
        IMPORT_FAILED,
        "importing wrong_syntax_model failed: SyntaxError: invalid syntax (wrong_syntax_model.py:2)",
    )
    code, message = why("exiting_model")
    assert (code, "sys.exit('no licence') (exiting_model.py:2)" in message) == (IMPORT_FAILED, True)
    assert why("oom_model")[0] == OUT_OF_MEMORY


def test_an_exit_in_the_model_is_remembered_as_one():
    model = engine("engines_app:LoadExits")
    run(failed(model.load(no_progress)))
    assert model.exit_code == 3


def test_hooks_that_are_missing_or_fail():
    async def scenario():
        plain = engine("engines_app:Plain")
        await plain.load(no_progress)
        assert plain.hooks == []
        assert (await failed(plain.park(no_progress))).code == NOT_SUPPORTED
        assert (await failed(engine("engines_app:AsyncEngine").stage(no_progress))).code == NOT_SUPPORTED
        fails = engine("engines_app:ParkFails")
        await fails.load(no_progress)
        error = await failed(fails.park(no_progress))
        assert error.code == HOOK_FAILED
        assert "the park hook failed: RuntimeError: the GPU is busy (engines_app.py:" in error.message

    run(scenario())


def test_an_app_without_lifespan_is_served_all_the_same():
    async def scenario():
        model = engine("failing_lifespan_app:has_none")
        assert callable(await model.load(no_progress))
        await model.unload()

    run(scenario())


def test_a_shutdown_that_fails_does_not_raise():
    async def scenario():
        model = engine("failing_lifespan_app:never_shuts_down")
        await model.load(no_progress)
        await model.unload()

    run(scenario())


def test_a_directory_that_cannot_be_entered_is_an_import_error():
    error = run(failed(AsgiEngine("echo_app:app", "/no", "directory = '/no' cannot be entered").load(no_progress)))
    assert (error.code, error.message) == (IMPORT_FAILED, "directory = '/no' cannot be entered")

"""The `asgi` engine: from `module:attr` to an ASGI app that has started, by way of the model's hooks.

An app's lifespan startup is its load step (uvicorn's own implementation, so that lifespan state reaches
`scope["state"]`). An Engine is a class or an instance with optional `stage`, `load`, `park`, `wake` and `unload`
hooks, sync (run on the main thread, as CUDA libraries expect) or async, and an `app`; it may also be callable
itself. Belongs to the loop's thread. Raises only SwapdError; tracebacks go to the log.
Knows nothing of sockets, states or the daemon.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from swapd.core.errors import HOOK_FAILED, IMPORT_FAILED, LOAD_FAILED, NOT_SUPPORTED, Problem, SwapdError
from swapd.worker.engines.declared import HOOKS, declared_hooks
from swapd.worker.engines.lifespan import AsgiApp, Lifespan
from swapd.worker.engines.torch_cap import limit_torch
from swapd.worker.failures import describe
from swapd.worker.progress import Progress

log = logging.getLogger("swapd.worker.engine")

ALL_HOOKS: Final = (*HOOKS, "load", "unload")
UNLOAD_TIMEOUT_S: Final = 10.0


class AsgiEngine:
    """One model, from nothing imported to loaded and back."""

    def __init__(self, app: str, directory: str, directory_problem: str = "", *, gpu_cap_bytes: int = 0) -> None:
        self.exit_code: int | None = None  # set when the model called sys.exit()
        self.lifespan_state: dict[str, Any] = {}
        self._target = app
        self._directory = directory
        self._directory_problem = directory_problem
        self._gpu_cap_bytes = gpu_cap_bytes
        self._object: Any = None  # the app, or the Engine's instance
        self._is_engine = False
        self._lifespan: Lifespan | None = None

    @property
    def hooks(self) -> list[str]:
        """The optional hooks that this model has. Before the import: what its source declares."""
        if self._object is None:
            return [] if self._directory_problem else declared_hooks(self._target, self._directory)
        return [name for name in HOOKS if self._is_engine and _hook(self._object, name) is not None]

    async def stage(self, progress: Progress) -> None:
        self._import()
        await self._run_hook("stage", HOOK_FAILED, progress, required=True)

    async def load(self, progress: Progress) -> AsgiApp:
        """The started app. Its lifespan state is in `lifespan_state`."""
        self._import()
        limit_torch(self._gpu_cap_bytes)
        if self._is_engine:
            await self._run_hook("load", LOAD_FAILED, progress)
        app = self._find_app()
        lifespan = Lifespan(app)
        try:
            await lifespan.startup()
        except BaseException as error:
            raise self._failed(LOAD_FAILED, "lifespan startup failed", error) from None
        self._lifespan = lifespan
        self.lifespan_state = lifespan.state
        return app

    async def park(self, progress: Progress) -> None:
        await self._run_hook("park", HOOK_FAILED, progress, required=True)

    async def wake(self, progress: Progress) -> None:
        await self._run_hook("wake", HOOK_FAILED, progress, required=True)

    async def unload(self) -> None:
        """Lifespan shutdown, then the `unload` hook. Never raises: it is the last thing that a worker does."""
        if self._lifespan is not None:
            await self._lifespan.shutdown()
        if self._is_engine and _hook(self._object, "unload") is not None:
            try:
                await asyncio.wait_for(
                    self._run_hook("unload", HOOK_FAILED, lambda *args, **options: None), UNLOAD_TIMEOUT_S
                )
            except asyncio.TimeoutError:
                log.warning("worker.unload_timeout limit_s=%g", UNLOAD_TIMEOUT_S)
            except SwapdError as error:
                log.warning("worker.unload_failed error=%s", error)

    # --- how ---

    def _import(self) -> None:
        if self._object is not None:
            return
        if self._directory_problem:
            raise SwapdError(IMPORT_FAILED, self._directory_problem)
        name, _, path = self._target.partition(":")
        if not name or not path or not all(part.isidentifier() for part in f"{name}.{path}".split(".")):
            text = f'app = "{self._target}" is not of the form "module:attribute" (or "module:attr.attr")'
            raise SwapdError(IMPORT_FAILED, text)
        try:
            found = importlib.import_module(name)
        except BaseException as error:
            raise self._import_failed(name, error) from None
        for part in path.split("."):
            found = self._attribute(found, part)
        self._object, self._is_engine = self._instance(found)

    def _import_failed(self, name: str, error: BaseException) -> SwapdError:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(missing + ".")):
            where = f" in {self._directory}" if self._directory else ""
            text = f"there is no module {missing!r}{where} or installed (app = {self._target!r})"
            return SwapdError(IMPORT_FAILED, text)
        return self._failed(IMPORT_FAILED, f"importing {name} failed", error)

    def _attribute(self, owner: Any, name: str) -> Any:
        try:
            return getattr(owner, name)
        except AttributeError:
            close = difflib.get_close_matches(name, [each for each in dir(owner) if each[0] != "_"], 1)
            of = getattr(owner, "__name__", type(owner).__name__)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SwapdError(IMPORT_FAILED, f"{of} has no attribute {name!r} (app = {self._target!r}){hint}") from None
        except BaseException as error:  # a module's or a property's own code
            raise self._failed(IMPORT_FAILED, f"looking up {self._target} failed", error) from None

    def _instance(self, found: Any) -> tuple[Any, bool]:
        """The object itself, or an instance of the Engine class; and whether it is an Engine."""
        if not inspect.isclass(found):
            return found, _looks_like_engine(found)
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            text = f"{self._target} is a class, so it is made without arguments, but: {error}"
            raise SwapdError(IMPORT_FAILED, text) from None
        except ValueError:  # no signature to be had: just try
            pass
        try:
            instance = found()
        except BaseException as error:
            raise self._failed(LOAD_FAILED, f"{found.__name__}() failed", error) from None
        return instance, _looks_like_engine(instance) or not callable(instance)

    def _find_app(self) -> AsgiApp:
        app = self._object
        what = f"app = {self._target!r}"
        if self._is_engine:
            own = getattr(app, "app", None)
            if own is None and not callable(app):
                text = f"{what}: {type(app).__name__} has no `app` after load, and is not callable itself"
                raise SwapdError(LOAD_FAILED, f"{text}; set self.app to an ASGI app")
            app = app if own is None else own
        problem = _not_asgi(app)
        if problem:
            raise SwapdError(IMPORT_FAILED, f"{what}: {problem}")
        return app  # type: ignore[no-any-return]

    async def _run_hook(self, name: str, code: str, progress: Progress, *, required: bool = False) -> None:
        hook = _hook(self._object, name) if self._is_engine else None
        if hook is None:
            if required:
                raise SwapdError(NOT_SUPPORTED, f"{self._target} has no {name!r} hook")
            return
        try:
            result = hook(**_arguments(hook, progress))
            if inspect.isawaitable(result):
                await result
        except BaseException as error:
            raise self._failed(code, f"the {name} hook failed", error) from None

    def _failed(self, code: str, what: str, error: BaseException) -> SwapdError:
        """`error` as a SwapdError, its traceback logged. Cancellation goes on: it is ours, not the model's."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            raise error
        problem: Problem = describe(code, what, error, self._directory)
        if isinstance(error, SystemExit):
            self.exit_code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error, SwapdError):
            log.error("worker.model_failed %s", problem.message, exc_info=error)
        return SwapdError.of(problem)


def _hook(owner: Any, name: str) -> Callable[..., Any] | None:
    hook = getattr(owner, name, None)
    return hook if callable(hook) else None


def _looks_like_engine(found: Any) -> bool:
    return any(_hook(found, name) is not None for name in ALL_HOOKS) or (not callable(found) and hasattr(found, "app"))


def _arguments(hook: Callable[..., Any], progress: Progress) -> Mapping[str, Any]:
    """`progress` for a hook that has a parameter of that name."""
    try:
        parameters = inspect.signature(hook).parameters
    except (TypeError, ValueError):
        return {}
    wanted = parameters.get("progress")
    named = wanted is not None and wanted.kind is not inspect.Parameter.POSITIONAL_ONLY
    return {"progress": progress} if named else {}


def _not_asgi(app: Any) -> str:
    """Why `app` cannot be an ASGI 3 app, or an empty string. Counts parameters only: nothing is called."""
    if not callable(app):
        return f"{type(app).__name__} is not callable: it must be an ASGI app, or an Engine (a class with hooks)"
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind({}, None, None)
    except TypeError:
        pass
    else:
        return ""
    count = len(signature.parameters)
    if count == 0:
        return "takes no arguments, so it looks like a factory: set app = create_app() in the module and name that"
    if count == 2:
        return "takes two arguments, so it looks like a WSGI app: swapd serves ASGI (wrap it, e.g. with a2wsgi)"
    return f"takes {count} arguments, but an ASGI app takes three: scope, receive, send"

"""Entry point of every worker: executed by path, in the model's own interpreter.

    python /path/to/swapd/worker/launch.py [--gate] WORKER_DIR
    python /path/to/swapd/worker/launch.py --shadow FD            (by a gate, for the process of its shadow)

That interpreter need not have swapd installed, so the package is registered here from where this file lies, and
nothing else of that place gets onto sys.path: the daemon's libraries must never shadow the model's. The syntax
is kept old on purpose, so that a Python that is too old can say so instead of failing to compile.
"""

import importlib
import importlib.util
import os
import sys

EX_CONFIG = 78  # sysexits.h: something in the configuration is not as it must be
OLDEST_PYTHON = (3, 10)
NEEDED = ("uvicorn", "uvloop", "httptools")
OLDEST_UVICORN = (0, 40)


def _register_package(package_dir: str) -> None:
    """Make `import swapd` mean the package at `package_dir`, whatever sys.path says."""
    init = os.path.join(package_dir, "__init__.py")
    spec = importlib.util.spec_from_file_location("swapd", init, submodule_search_locations=[package_dir])
    if spec is None or spec.loader is None:
        raise ImportError("no package at %s" % package_dir)  # noqa: UP031
    module = importlib.util.module_from_spec(spec)
    sys.modules["swapd"] = module
    spec.loader.exec_module(module)


def _misfit() -> str:
    """Why this interpreter cannot run a worker, or an empty string."""
    if sys.version_info < OLDEST_PYTHON:
        return "{} is Python {}.{}: a model's interpreter must be Python {}.{} or newer".format(  # noqa: UP032
            sys.executable, sys.version_info[0], sys.version_info[1], OLDEST_PYTHON[0], OLDEST_PYTHON[1]
        )
    cure = "install with '%s -m pip install %s'" % (sys.executable, " ".join(NEEDED))  # noqa: UP031
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return "{} lacks {}: {}".format(sys.executable, ", ".join(missing), cure)
    try:
        for name in NEEDED:
            importlib.import_module(name)
    except Exception as error:  # built for another Python, a broken dependency, ...
        return "{} cannot import {}: {}: {}".format(sys.executable, name, type(error).__name__, error)  # noqa: UP032
    version = sys.modules["uvicorn"].__version__
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST_UVICORN:
        wanted = ".".join(str(part) for part in OLDEST_UVICORN)
        return "{} has uvicorn {}, which is older than {}: {}".format(sys.executable, version, wanted, cure)  # noqa: UP032
    return ""


def _drop_own_directory(own_dir: str) -> None:
    """Python put this script's directory first on sys.path: `channel` or `main` must not be importable."""
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.getcwd()) != own_dir]


def _run() -> int:
    own_dir = os.path.dirname(os.path.realpath(__file__))
    _drop_own_directory(own_dir)
    arguments = sys.argv[1:]
    if arguments[:1] == ["--shadow"] and len(arguments) == 2:
        _register_package(os.path.dirname(own_dir))
        from swapd.front.shadow.process import main as shadow

        return shadow(int(arguments[1]))
    gate = "--gate" in arguments
    directories = [argument for argument in arguments if argument != "--gate"]
    if len(directories) != 1:
        sys.stderr.write("usage: launch.py [--gate] WORKER_DIR\n")
        return 2
    _register_package(os.path.dirname(own_dir))
    misfit = _misfit()
    if misfit:
        sys.stderr.write("swapd worker: " + misfit + "\n")
        sys.stderr.flush()
        if sys.version_info >= OLDEST_PYTHON:
            from swapd.worker.refusal import tell_misfit

            tell_misfit(directories[0], misfit)
        return EX_CONFIG
    from swapd.worker.main import main

    return main(directories[0], gate=gate)


if __name__ == "__main__":  # the guard matters: multiprocessing's "spawn" runs this file again in children
    sys.exit(_run())

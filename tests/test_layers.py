"""Each outside library has one importer; import-linter (`make check`) sees to the layers themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "swapd"
SOLE = {
    "zmq": ("host/control_socket", "client"),
    "pynvml": ("host/nvml",),
    "sqlite3": ("host/journal.py", "host/journal_reader.py"),
    "sdnotify": ("host/service_manager.py",),
    "h11": ("host/probes.py",),
    "prometheus_client": ("host/metrics.py",),
    "psutil": ("host/host_memory.py", "host/listeners.py", "host/processes", "host/nvml"),
    "rich": ("cli",),
    "uvicorn": ("front", "worker"),
    "httptools": ("front", "worker"),
    "uvloop": ("front", "worker"),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("library", SOLE)
def test_a_library_is_imported_in_its_own_place_only(library):
    importers = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if library in set(imports(p))}
    elsewhere = {name for name in importers if not name.startswith(SOLE[library])}
    assert not elsewhere


def test_every_module_says_what_it_is_for():
    silent = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not silent

"""Hooks read from source, without running any of it."""

import sys

import pytest
from support.worker_client import APPS

from swapd.worker.engines.declared import declared_hooks


@pytest.mark.parametrize(
    ("app", "hooks"),
    [
        ("engines_app:SyncEngine", ["stage", "park", "wake"]),
        ("engines_app:AsyncEngine", ["park", "wake"]),
        ("engines_app:Inherits", ["park", "wake"]),
        ("engines_app:instance", ["stage", "park", "wake"]),
        ("engines_app:annotated", ["park", "wake"]),
        ("engines_app:Plain", []),
        ("engines_app:answer", []),
        ("engines_app:nothing", []),
        ("no_such_module:app", []),
        ("json:tool", []),
        ("sys:app", []),
        ("", []),
        (":", []),
        ("a..b:c", []),
    ],
)
def test_hooks_are_seen_in_the_source(app, hooks):
    assert declared_hooks(app, str(APPS)) == hooks


def test_nothing_is_imported_not_even_a_parent_package(tmp_path):
    package = tmp_path / "pack_never_imported"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "model.py").write_text("raise SystemExit\nclass Engine:\n    async def park(self): ...\n")
    assert declared_hooks("pack_never_imported.model:Engine", str(tmp_path)) == ["park"]
    assert "pack_never_imported" not in sys.modules


def test_source_that_cannot_be_parsed_declares_nothing(tmp_path):
    (tmp_path / "broken.py").write_text("class Engine\n")
    assert declared_hooks("broken:Engine", str(tmp_path)) == []


def test_classes_that_inherit_in_a_circle_end(tmp_path):
    (tmp_path / "circle.py").write_text("class A(B):\n    def park(self): ...\nclass B(A):\n    pass\n")
    assert declared_hooks("circle:B", str(tmp_path)) == ["park"]

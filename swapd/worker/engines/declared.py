"""Which hooks a model declares, read from its source: nothing is imported, for an import may take device memory.

`hello` must name the hooks before anything of the model runs, because only a model that declares `stage` may be
started before its memory is confirmed. A best effort: what cannot be seen statically (a hook from another
module's base class, an object made by a function) counts as absent until the import.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import Final

HOOKS: Final = ("stage", "park", "wake")
MAX_SOURCE_BYTES: Final = 4 * 1024 * 1024


def declared_hooks(app: str, directory: str = "") -> list[str]:
    """The hooks of `module:Class`, or of `module:name` where `name = Class(...)` at the module's top."""
    module, _, attribute = app.partition(":")
    source = _source(module, directory)
    if source is None:
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    name = attribute if attribute in classes else _class_made(tree, attribute)
    methods = _methods(classes, name, set())
    return [hook for hook in HOOKS if hook in methods]


def _source(module: str, directory: str) -> bytes | None:
    """The module's source. Only finders are asked: `importlib.util.find_spec` would import parent packages."""
    path: Sequence[str] | None = [directory] if directory else None
    spec = None
    names = module.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        try:
            spec = PathFinder.find_spec(name, path)
            if spec is None and depth == 1 and path is not None:
                spec = PathFinder.find_spec(name)  # installed, not in the model's directory
        except (ImportError, OSError, ValueError):
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        with open(spec.origin, "rb") as file:
            return file.read(MAX_SOURCE_BYTES)
    except OSError:
        return None


def _class_made(tree: ast.Module, name: str) -> str:
    """`Engine` for `name = Engine(...)`; the last such line counts."""
    made = ""
    for node in tree.body:
        targets: Sequence[ast.expr] = ()
        value = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign):
            targets, value = [node.target], node.value
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            made = value.func.id
    return made


def _methods(classes: dict[str, ast.ClassDef], name: str, seen: set[str]) -> set[str]:
    """Names defined in the class or in its bases of the same module."""
    if name not in classes or name in seen:
        return set()
    seen.add(name)
    found: set[str] = set()
    for node in classes[name].body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
    for base in classes[name].bases:
        if isinstance(base, ast.Name):
            found |= _methods(classes, base.id, seen)
    return found

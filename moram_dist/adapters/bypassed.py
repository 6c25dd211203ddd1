"""Find linears whose weight other code reads directly: it would silently bypass an adapter there.

Mamba's fused kernels take ``self.out_proj.weight`` and never call ``self.out_proj``. Which kernels
run depends on the machine, so the weights that a block may read are found in its source code.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache

from torch import nn

HARMLESS = ("dtype", "device", "shape", "size", "ndim", "is_cuda", "requires_grad")
"""Attributes of a weight that can be read without using its numbers."""


def bypassed(model: nn.Module) -> set[str]:
    """Full names of the submodules whose weight or bias some other module's code reads.

    ``F.linear`` with the weight does not count: models that use it also call the layer, depending
    on settings (BLOOM's ``slow_but_exact``), so only running the model tells.
    """
    found: set[str] = set()
    read: dict[type, set[str]] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in read:
            read[kind] = _read_by(kind)
        for path in read[kind]:
            try:
                module.get_submodule(path)
            except AttributeError:
                continue
            found.add(f"{name}.{path}".lstrip("."))
    return found


def _read_by(kind: type[nn.Module]) -> set[str]:
    """Attribute paths below ``self`` whose weight or bias the methods of a class read."""
    found: set[str] = set()
    for ancestor in kind.__mro__:
        if ancestor.__name__ in ("Module", "PreTrainedModel"):
            continue
        for method in _classes(ancestor.__module__).get(ancestor.__name__, ()):
            if isinstance(method, ast.FunctionDef) and "init" not in method.name:
                found |= _read_in(method)
    return found


@cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """Class name -> its body, for the classes of a Python module; empty if it has no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):
        return {}
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _read_in(method: ast.FunctionDef) -> set[str]:
    nodes = list(ast.walk(method))
    reads = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr in ("weight", "bias")]
    if not reads:  # as in most methods
        return set()
    parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
    found: set[str] = set()
    for node in reads:
        path = ast.unparse(node.value)
        used = isinstance(node.ctx, ast.Load) and not _is_harmless(parents[node])
        if used and path.startswith("self.") and not _in_linear(node, parents):
            found.add(path.removeprefix("self."))
    return found


def _is_harmless(parent: ast.AST) -> bool:
    """Whether the expression around a weight reads only its type or properties."""
    if isinstance(parent, ast.Attribute):
        return parent.attr in HARMLESS
    if isinstance(parent, ast.Call):
        return ast.unparse(parent.func) in ("isinstance", "hasattr")
    return isinstance(parent, ast.Compare)


def _in_linear(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether the node is an argument of ``F.linear``, perhaps sliced."""
    parent = parents[node]
    if isinstance(parent, ast.Subscript):
        parent = parents[parent]
    return isinstance(parent, ast.Call) and ast.unparse(parent.func) in (
        "F.linear",
        "nn.functional.linear",
        "torch.nn.functional.linear",
    )

"""The reviewed table against mlx-lm's own code, which may change under it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys

import pytest

from checkpoint.architecture import mlx_lm_models
from checkpoint.architecture.reviewed import ARCHITECTURES, ROPE_KEYS, UNJUDGED


def names_used(module: str) -> set[str]:
    """Attributes that a module's code reads, and names it asks `getattr` for."""
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            literals = [a.value for a in node.args if isinstance(a, ast.Constant)]
            used |= {x for x in literals if node.func.id == "getattr" and isinstance(x, str)}
    return used


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_keys_that_mlx_lm_declares_and_never_reads_are_listed(model_type: str) -> None:
    classes = mlx_lm_models.load_classes(model_type)
    modules = {c.__module__ for c in (*classes.model.__mro__, *classes.args.__mro__)}
    used = set().union(*(names_used(m) for m in modules if m.startswith("mlx_lm.models")))
    declared = {field.name for field in dataclasses.fields(classes.args)}
    assert declared - used - UNJUDGED - ROPE_KEYS == ARCHITECTURES[model_type].unread


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_renamed_keys_are_keys_that_mlx_lm_has(model_type: str) -> None:
    classes = mlx_lm_models.load_classes(model_type)
    declared = {field.name for field in dataclasses.fields(classes.args)}
    assert ARCHITECTURES[model_type].renamed.keys() - {"rope_parameters"} <= declared

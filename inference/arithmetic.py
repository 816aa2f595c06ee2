"""What a model's calculator works out: arithmetic, and how often a text holds another.

Owns the whitelist: numbers, + - * / // and parentheses, and `'text'.count('part')` alone.
An expression is parsed and walked, never run; whatever else stands in it has no result.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable

_LONGEST = 500
_DEEPEST = 60
_CHARACTERS = frozenset("0123456789*+-/.() ")
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def work_out(expression: str) -> str | None:
    """The result of an expression as Python writes it; None if it has none."""
    text = expression.replace(",", "").strip()
    if not text or len(text) > _LONGEST:
        return None
    counting = not set(text) <= _CHARACTERS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python finds odd in the text
            parsed = ast.parse(text, mode="eval").body
        return str(_count(parsed) if counting else _number(parsed, 0))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _number(node: ast.expr, depth: int) -> float:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left, kind, right) if type(kind) in _BINARY:
            return _BINARY[type(kind)](_number(left, depth + 1), _number(right, depth + 1))
        case ast.UnaryOp(kind, operand) if type(kind) in _UNARY:
            return _UNARY[type(kind)](_number(operand, depth + 1))
    raise ValueError("not arithmetic")


def _count(node: ast.expr) -> int:
    match node:
        case ast.Call(
            ast.Attribute(ast.Constant(value=str() as text), "count"),
            [ast.Constant(value=str() as part)],
            [],
        ):
            return text.count(part)
    raise ValueError("counts nothing")

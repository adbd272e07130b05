"""Arithmetic in a YAML file, read without giving the file the power to run code.

A small walk over Python's syntax tree: numbers, ``+ - * / // **``, signs, lists, ``min``, ``max``,
``round`` and the names of parameters, also dotted ones. Nothing else is evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Number = int | float
MAX_LENGTH = 500
ALLOWED = "numbers, + - * / // **, [lists], min, max, round and names of parameters"


def power(base: Number, exponent: Number) -> Number:
    """``base ** exponent`` in floats, so that a tower of integers overflows at once."""
    result = float(base) ** exponent
    if isinstance(result, complex):
        raise ValueError("a root of a negative number")
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0
    return int(result) if whole and abs(result) < 2**53 else result


OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: power,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {"min": min, "max": max, "round": round}


@dataclass(frozen=True)
class Expression:
    """A checked expression: its text, its tree, and the parameters that it names."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    def evaluate(self, values: Mapping[str, Any]) -> Number | list[Number]:
        """The value, given one for each of ``names``; raises ValueError if there is none."""
        try:
            if isinstance(self.tree, ast.List | ast.Tuple):
                return [finite(_evaluate(item, values)) for item in self.tree.elts]
            return finite(_evaluate(self.tree, values))
        except (ArithmeticError, TypeError) as error:
            raise ValueError(str(error)) from None


def parse(text: str) -> Expression:
    """Read ``text``; raises ValueError naming the first thing in it that is not allowed."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        raise ValueError(f"not an expression; allowed: {ALLOWED}") from None
    names: dict[str, None] = {}  # keeps the order
    items = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    for item in items:
        _check(item, names)
    return Expression(text, tree, tuple(names))


def _check(node: ast.expr, names: dict[str, None]) -> None:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            pass
        case ast.Name() | ast.Attribute():
            names[_dotted(node)] = None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _check(left, names)
            _check(right, names)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if not args or (name == "round" and len(args) > 1):
                raise ValueError(f"wrong number of arguments in {ast.unparse(node)!r}")
            for argument in args:
                _check(argument, names)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed; allowed: {ALLOWED}")


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{_dotted(value)}.{attribute}"
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not the name of a parameter")


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            value = _evaluate(operand, values)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.Call(func=ast.Name(id=name), args=args):
            numbers = [_evaluate(argument, values) for argument in args]
            # min and max of one number are that number; Python wants an iterable there.
            return FUNCTIONS[name](*numbers) if name == "round" else FUNCTIONS[name](numbers)
        case _:
            name = _dotted(node)
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} = {value!r} is not a number")
            return value


def finite(value: Number) -> Number:
    if not math.isfinite(value):
        raise ValueError(f"gives {value}")
    return value

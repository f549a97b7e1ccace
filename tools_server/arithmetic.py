"""Arithmetic as people write it: exact for integers, and bounded before anything is computed."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from simpleeval import SimpleEval  # pyright: ignore[reportMissingTypeStubs]

Number = int | float

MOST_CHARACTERS = 500
MOST_DEPTH = 260
MOST_BITS = 13_000  # some 3,900 digits: Python itself writes out at most 4,300
_SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**", "\u03c0": "pi"}
)
_NOT_ARITHMETIC = "this is not arithmetic; write for example (2+3)*4, sqrt(2), or 15/100*80 for 15% of 80"


class CannotCalculate(Exception):
    """Why not, for whoever wrote the expression."""


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression. `^` means power.

    Raises:
        CannotCalculate: it is no arithmetic, has no real value, or is larger than is reasonable.
    """
    if len(expression) > MOST_CHARACTERS:
        raise CannotCalculate(f"the expression is longer than {MOST_CHARACTERS} characters")
    evaluator: Any = SimpleEval(operators=_OPERATORS, functions=_FUNCTIONS, names=_CONSTANTS)
    try:
        value = evaluator.eval(expression, previously_parsed=_parsed(expression.translate(_SIGNS).strip()))
    except ZeroDivisionError:
        raise CannotCalculate("division by zero") from None
    except OverflowError:
        raise CannotCalculate("a value in it is too large for a decimal fraction") from None
    except RecursionError:
        raise CannotCalculate("the expression is nested too deeply") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise CannotCalculate("the result is not a finite number")
    return value


def written(value: Number) -> str:
    """A number as people write it: integers in full, others to 15 digits."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(value, ".15g")


# --- what may be evaluated: simpleeval knows strings, attributes and more, which have no place in arithmetic


def _parsed(source: str) -> ast.expr:
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CannotCalculate(_NOT_ARITHMETIC) from None
    level: list[ast.AST] = [tree]
    for _ in range(MOST_DEPTH):
        level = [part for node in level for part in _parts(node)]
        if not level:
            return tree
    raise CannotCalculate("the expression is nested too deeply")


def _parts(node: ast.AST) -> list[ast.AST]:
    """What an allowed node is made of."""
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            return []
        case ast.Name(id=name) if name in _CONSTANTS:
            return []
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return [left, right]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return list(arguments)
        case _:
            raise CannotCalculate(_why_not(node))


def _why_not(node: ast.AST) -> str:
    match node:
        case ast.Call(func=ast.Name(id=name)) if name not in _FUNCTIONS:
            return f"there is no function {name!r}; there are {', '.join(sorted(_FUNCTIONS))}"
        case ast.Call(func=ast.Constant() | ast.BinOp()):
            return "a sign is missing before a parenthesis; write 2*(3+4), not 2(3+4)"
        case ast.Name(id=name) if name in _FUNCTIONS:
            return f"{name} needs its value in parentheses, such as {name}(2)"
        case ast.Name(id=name):
            return f"{name!r} is not a number; only numbers, pi, e and tau can be calculated with"
        case ast.Tuple():
            return "a comma is in the wrong place; write 1234.5, not 1,234.5"
        case _:
            return _NOT_ARITHMETIC


# --- operators and functions, each bounded before it computes


def _bounded(bits: float) -> None:
    if bits > MOST_BITS:
        raise CannotCalculate("the result would be too large: it has more than 3,900 digits")


def _bits(number: int) -> float:
    return math.log2(abs(number)) if number else 0.0


def _multiply(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        _bounded(_bits(a) + _bits(b))
    return a * b


def _divide(a: Number, b: Number) -> Number:
    """Exact where it comes out even."""
    if isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0:
        return a // b
    return a / b


def _floor_divide(a: Number, b: Number) -> Number:
    return a // b


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        _bounded(_bits(base) * exponent)
    value: Any = base**exponent
    if isinstance(value, complex):
        raise CannotCalculate("a root of a negative number is not a real number")
    return value


def _shift_left(a: Number, b: Number) -> int:
    number, places = _whole(a, "<<"), _whole(b, "<<")
    if places < 0:
        raise CannotCalculate("a shift by less than nothing is not defined")
    _bounded(_bits(number) + places)
    return number << places


def _shift_right(a: Number, b: Number) -> int:
    number, places = _whole(a, ">>"), _whole(b, ">>")
    if places < 0:
        raise CannotCalculate("a shift by less than nothing is not defined")
    return number >> min(places, 2 * MOST_BITS)


def _whole(number: Number, asked_by: str) -> int:
    if isinstance(number, float):
        if not number.is_integer():
            raise CannotCalculate(f"{asked_by} takes whole numbers")
        return int(number)
    return number


def _factorial(n: Number) -> int:
    n = _whole(n, "factorial")
    _bounded(n)  # n! has more than n bits, but for the smallest
    _bounded(math.lgamma(n + 1) / math.log(2) if n > 0 else 0)
    return math.factorial(n)


def _combinations(n: Number, k: Number) -> int:
    n, k = _whole(n, "comb"), _whole(k, "comb")
    if (fewer := min(k, n - k)) > 0:
        _bounded(fewer * (_bits(n) - _bits(fewer) + math.log2(math.e)))  # comb(n, k) < (e * n / k) ** k
    return math.comb(n, k)


def _permutations(n: Number, k: Number | None = None) -> int:
    if k is None or n == k:
        return _factorial(n)
    n, k = _whole(n, "perm"), _whole(k, "perm")
    if 0 < k < n:
        _bounded(k * _bits(n))
    return math.perm(n, k)


def _greatest_common_divisor(*numbers: Number) -> int:
    return math.gcd(*(_whole(number, "gcd") for number in numbers))


def _least_common_multiple(*numbers: Number) -> int:
    whole = [_whole(number, "lcm") for number in numbers]
    _bounded(sum(map(_bits, whole)))
    return math.lcm(*whole)


def _maximum(*numbers: Number) -> Number:
    return max(numbers)


def _minimum(*numbers: Number) -> Number:
    return min(numbers)


def _sqrt(x: Number) -> Number:
    """Exact for square integers."""
    if isinstance(x, int) and x >= 0 and (root := math.isqrt(x)) ** 2 == x:
        return root
    return math.sqrt(x)


def _round(x: Number, digits: Number = 0) -> Number:
    places = _whole(digits, "round")
    return round(x, max(-5000, min(places, 5000))) if places else round(x)


def _explained(name: str, function: Callable[..., Number]) -> Callable[..., Any]:
    """The function, with Python's complaints in words that mean something to whoever wrote the expression."""

    def call(*arguments: Number) -> Number:
        try:
            return function(*arguments)
        except TypeError:
            raise CannotCalculate(f"{name} was given too few or too many values") from None
        except ValueError:
            raise CannotCalculate(
                f"{name} is not defined for {', '.join(map(written, arguments))[:100] or 'nothing'}"
            ) from None

    return call


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.LShift: _shift_left,
    ast.RShift: _shift_right,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FROM_MATH = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil cos cosh degrees exp floor hypot log log10 log2 radians sin sinh "
    "tan tanh trunc"
)
_NAMED: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "comb": _combinations,
    "factorial": _factorial,
    "gcd": _greatest_common_divisor,
    "lcm": _least_common_multiple,
    "ln": math.log,
    "max": _maximum,
    "min": _minimum,
    "perm": _permutations,
    "pow": _power,
    "round": _round,
    "sqrt": _sqrt,
} | {name: getattr(math, name) for name in _FROM_MATH.split()}
_FUNCTIONS = {name: _explained(name, function) for name, function in _NAMED.items()}

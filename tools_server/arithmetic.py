"""Arithmetic as people write it: exact for integers, and bounded before anything is computed."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from simpleeval import SimpleEval  # pyright: ignore[reportMissingTypeStubs]

Number = int | float

MAX_CHARACTERS = 500
MAX_DEPTH = 260
MAX_BITS = 13_000  # some 3,900 digits: Python itself writes out at most 4,300
_SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**", "\u03c0": "pi"}
)
_NOT_ARITHMETIC = "this is not arithmetic; write for example (2+3)*4, sqrt(2), or 15/100*80 for 15% of 80"


class CalculationError(Exception):
    """Why not, for whoever wrote the expression."""


def evaluate_expression(expression: str) -> Number:
    """The value of an arithmetic expression. `^` means power.

    Raises:
        CannotCalculate: it is no arithmetic, has no real value, or is larger than is reasonable.
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculationError(f"the expression is longer than {MAX_CHARACTERS} characters")
    evaluator: Any = SimpleEval(operators=_OPERATORS, functions=_FUNCTIONS, names=_CONSTANTS)
    try:
        value = evaluator.eval(expression, previously_parsed=_parse_expression(expression.translate(_SIGNS).strip()))
    except ZeroDivisionError:
        raise CalculationError("division by zero") from None
    except OverflowError:
        raise CalculationError("a value in it is too large for a decimal fraction") from None
    except RecursionError:
        raise CalculationError("the expression is nested too deeply") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise CalculationError("the result is not a finite number")
    return value


def format_number(value: Number) -> str:
    """A number as people write it: integers in full, others to 15 digits."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(value, ".15g")


# --- what may be evaluated: simpleeval knows strings, attributes and more, which have no place in arithmetic


def _parse_expression(source: str) -> ast.expr:
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculationError(_NOT_ARITHMETIC) from None
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [part for node in level for part in _list_operands(node)]
        if not level:
            return tree
    raise CalculationError("the expression is nested too deeply")


def _list_operands(node: ast.AST) -> list[ast.AST]:
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
            raise CalculationError(_explain_rejection(node))


def _explain_rejection(node: ast.AST) -> str:
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


def _check_size(bits: float) -> None:
    if bits > MAX_BITS:
        raise CalculationError("the result would be too large: it has more than 3,900 digits")


def _count_bits(number: int) -> float:
    return math.log2(abs(number)) if number else 0.0


def _multiply_bounded(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        _check_size(_count_bits(a) + _count_bits(b))
    return a * b


def _divide_exactly(a: Number, b: Number) -> Number:
    """Exact where it comes out even."""
    if isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0:
        return a // b
    return a / b


def _floor_divide(a: Number, b: Number) -> Number:
    return a // b


def _raise_to_power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        _check_size(_count_bits(base) * exponent)
    value: Any = base**exponent
    if isinstance(value, complex):
        raise CalculationError("a root of a negative number is not a real number")
    return value


def _shift_left(a: Number, b: Number) -> int:
    number, places = _require_integer(a, "<<"), _require_integer(b, "<<")
    if places < 0:
        raise CalculationError("a shift by less than nothing is not defined")
    _check_size(_count_bits(number) + places)
    return number << places


def _shift_right(a: Number, b: Number) -> int:
    number, places = _require_integer(a, ">>"), _require_integer(b, ">>")
    if places < 0:
        raise CalculationError("a shift by less than nothing is not defined")
    return number >> min(places, 2 * MAX_BITS)


def _require_integer(number: Number, operation: str) -> int:
    if isinstance(number, float):
        if not number.is_integer():
            raise CalculationError(f"{operation} takes whole numbers")
        return int(number)
    return number


def _compute_factorial(n: Number) -> int:
    n = _require_integer(n, "factorial")
    _check_size(n)  # n! has more than n bits, but for the smallest
    _check_size(math.lgamma(n + 1) / math.log(2) if n > 0 else 0)
    return math.factorial(n)


def _count_combinations(n: Number, k: Number) -> int:
    n, k = _require_integer(n, "comb"), _require_integer(k, "comb")
    if (fewer := min(k, n - k)) > 0:
        _check_size(fewer * (_count_bits(n) - _count_bits(fewer) + math.log2(math.e)))  # comb(n, k) < (e * n / k) ** k
    return math.comb(n, k)


def _count_permutations(n: Number, k: Number | None = None) -> int:
    if k is None or n == k:
        return _compute_factorial(n)
    n, k = _require_integer(n, "perm"), _require_integer(k, "perm")
    if 0 < k < n:
        _check_size(k * _count_bits(n))
    return math.perm(n, k)


def _greatest_common_divisor(*numbers: Number) -> int:
    return math.gcd(*(_require_integer(number, "gcd") for number in numbers))


def _least_common_multiple(*numbers: Number) -> int:
    whole = [_require_integer(number, "lcm") for number in numbers]
    _check_size(sum(map(_count_bits, whole)))
    return math.lcm(*whole)


def _find_maximum(*numbers: Number) -> Number:
    return max(numbers)


def _find_minimum(*numbers: Number) -> Number:
    return min(numbers)


def _square_root(x: Number) -> Number:
    """Exact for square integers."""
    if isinstance(x, int) and x >= 0 and (root := math.isqrt(x)) ** 2 == x:
        return root
    return math.sqrt(x)


def _round_number(x: Number, digits: Number = 0) -> Number:
    places = _require_integer(digits, "round")
    return round(x, max(-5000, min(places, 5000))) if places else round(x)


def _with_readable_errors(name: str, function: Callable[..., Number]) -> Callable[..., Any]:
    """The function, with Python's complaints in words that mean something to whoever wrote the expression."""

    def call(*arguments: Number) -> Number:
        try:
            return function(*arguments)
        except TypeError:
            raise CalculationError(f"{name} was given too few or too many values") from None
        except ValueError:
            raise CalculationError(
                f"{name} is not defined for {', '.join(map(format_number, arguments))[:100] or 'nothing'}"
            ) from None

    return call


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply_bounded,
    ast.Div: _divide_exactly,
    ast.FloorDiv: _floor_divide,
    ast.Mod: operator.mod,
    ast.Pow: _raise_to_power,
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
    "comb": _count_combinations,
    "factorial": _compute_factorial,
    "gcd": _greatest_common_divisor,
    "lcm": _least_common_multiple,
    "ln": math.log,
    "max": _find_maximum,
    "min": _find_minimum,
    "perm": _count_permutations,
    "pow": _raise_to_power,
    "round": _round_number,
    "sqrt": _square_root,
} | {name: getattr(math, name) for name in _FROM_MATH.split()}
_FUNCTIONS = {name: _with_readable_errors(name, function) for name, function in _NAMED.items()}

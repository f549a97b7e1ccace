"""Evaluation of arithmetic expressions.

It is exact for integers, and bounds the size of results beforehand.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from simpleeval import SimpleEval  # pyright: ignore[reportMissingTypeStubs]

Number = int | float

MAX_CHARACTERS = 500
MAX_DEPTH = 260
MAX_BITS = 13_000  # about 3,900 digits; Python refuses to format integers of more than 4,300
_OPERATOR_SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**", "\u03c0": "pi"}
)
_NOT_ARITHMETIC = "this is not arithmetic; write for example (2+3)*4, sqrt(2), or 15/100*80 for 15% of 80"


class _Evaluator(Protocol):
    """The part of simpleeval, which has no types, that this module uses."""

    def eval(self, expr: str, previously_parsed: ast.expr) -> Number: ...


class CalculationError(Exception):
    """Error of an expression that cannot be evaluated.

    `str()` is the reason, for the author of the expression.
    """


def evaluate_expression(expression: str) -> Number:
    """Evaluate an arithmetic expression. `^` means power.

    Raises:
        CalculationError: the expression is not arithmetic, has no real value, or exceeds a limit of this module.
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculationError(f"the expression is longer than {MAX_CHARACTERS} characters")
    evaluator = cast(_Evaluator, SimpleEval(operators=_OPERATORS, functions=_FUNCTIONS, names=_CONSTANTS))
    try:
        tree = _parse_expression(expression.translate(_OPERATOR_SIGNS).strip())
        value = evaluator.eval(expression, previously_parsed=tree)
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
    """Format a number: integers in full, others to 15 digits."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(value, ".15g")


# --- allowed syntax: simpleeval also evaluates strings, attributes and more, which arithmetic does not need


def _parse_expression(source: str) -> ast.expr:
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculationError(_NOT_ARITHMETIC) from None
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [operand for node in level for operand in _list_operands(node)]
        if not level:
            return tree
    raise CalculationError("the expression is nested too deeply")


def _list_operands(node: ast.AST) -> list[ast.AST]:
    """List the operands of a node.

    Raises:
        CalculationError: the node is not allowed.
    """
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
    """Divide; two integers without a remainder give an integer."""
    if isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0:
        return a // b
    return a / b


def _floor_divide(a: Number, b: Number) -> Number:
    return a // b


def _raise_to_power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        _check_size(_count_bits(base) * exponent)
    value: object = base**exponent
    if isinstance(value, int | float):
        return value
    raise CalculationError("a root of a negative number is not a real number")


def _shift_left(a: Number, b: Number) -> int:
    number, distance = _require_integer(a, "<<"), _require_integer(b, "<<")
    if distance < 0:
        raise CalculationError("a shift by a negative number is not defined")
    _check_size(_count_bits(number) + distance)
    return number << distance


def _shift_right(a: Number, b: Number) -> int:
    number, distance = _require_integer(a, ">>"), _require_integer(b, ">>")
    if distance < 0:
        raise CalculationError("a shift by a negative number is not defined")
    return number >> min(distance, 2 * MAX_BITS)


def _require_integer(number: Number, operation: str) -> int:
    if isinstance(number, float):
        if not number.is_integer():
            raise CalculationError(f"{operation} takes whole numbers")
        return int(number)
    return number


def _compute_factorial(n: Number) -> int:
    n = _require_integer(n, "factorial")
    _check_size(n)  # rejects numbers too large for lgamma; n! has more than n bits, except for small n
    _check_size(math.lgamma(n + 1) / math.log(2) if n > 0 else 0)
    return math.factorial(n)


def _count_combinations(n: Number, k: Number) -> int:
    n, k = _require_integer(n, "comb"), _require_integer(k, "comb")
    if (smaller := min(k, n - k)) > 0:
        # comb(n, k) < (e * n / k) ** k
        _check_size(smaller * (_count_bits(n) - _count_bits(smaller) + math.log2(math.e)))
    return math.comb(n, k)


def _count_permutations(n: Number, k: Number | None = None) -> int:
    if k is None or n == k:
        return _compute_factorial(n)
    n, k = _require_integer(n, "perm"), _require_integer(k, "perm")
    if 0 < k < n:
        _check_size(k * _count_bits(n))
    return math.perm(n, k)


def _compute_gcd(*numbers: Number) -> int:
    return math.gcd(*(_require_integer(number, "gcd") for number in numbers))


def _compute_lcm(*numbers: Number) -> int:
    integers = [_require_integer(number, "lcm") for number in numbers]
    _check_size(sum(map(_count_bits, integers)))
    return math.lcm(*integers)


def _find_maximum(*numbers: Number) -> Number:
    return max(numbers)


def _find_minimum(*numbers: Number) -> Number:
    return min(numbers)


def _compute_square_root(x: Number) -> Number:
    """Compute a square root; that of a square integer is an integer."""
    if isinstance(x, int) and x >= 0 and (root := math.isqrt(x)) ** 2 == x:
        return root
    return math.sqrt(x)


def _round_number(x: Number, digits: Number = 0) -> Number:
    places = _require_integer(digits, "round")
    return round(x, max(-5000, min(places, 5000))) if places else round(x)


def _with_readable_errors(name: str, function: Callable[..., Number]) -> Callable[..., Number]:
    """Wrap a function to raise readable errors.

    Python's errors become errors for the author of the expression.
    """

    def call_function(*arguments: Number) -> Number:
        try:
            return function(*arguments)
        except TypeError:
            raise CalculationError(f"{name} got too few or too many values") from None
        except ValueError:
            raise CalculationError(
                f"{name} is not defined for {', '.join(map(format_number, arguments))[:100] or 'nothing'}"
            ) from None

    return call_function


_OPERATORS: dict[type[ast.AST], Callable[..., object]] = {
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
_UNWRAPPED_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "abs": abs,
    "comb": _count_combinations,
    "factorial": _compute_factorial,
    "gcd": _compute_gcd,
    "lcm": _compute_lcm,
    "ln": math.log,
    "max": _find_maximum,
    "min": _find_minimum,
    "perm": _count_permutations,
    "pow": _raise_to_power,
    "round": _round_number,
    "sqrt": _compute_square_root,
} | {name: getattr(math, name) for name in _FROM_MATH.split()}
_FUNCTIONS = {name: _with_readable_errors(name, function) for name, function in _UNWRAPPED_FUNCTIONS.items()}

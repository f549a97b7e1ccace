"""`calculator`: arithmetic that a model can rely on, exact for integers, and bounded before anything is computed."""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field
from simpleeval import InvalidExpression, SimpleEval  # pyright: ignore[reportMissingTypeStubs]

Number = int | float

MOST_CHARACTERS = 500
MOST_DEPTH = 60
MOST_BITS = 13_000  # some 3,900 digits: Python itself writes out at most 4,300
_EXACT_IN_JSON = 2**53
_SIGNS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "\u2191"})


class Calculation(BaseModel):
    expression: str
    result: int | float | str = Field(description="A number; an integer too large for JSON readers, as its digits.")


class CannotCalculate(ValueError):
    """Why not, for whoever wrote the expression."""


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression. `^` means power.

    Raises:
        CannotCalculate: it is no arithmetic, has no real value, or is larger than is reasonable.
    """
    if len(expression) > MOST_CHARACTERS:
        raise CannotCalculate(f"the expression is longer than {MOST_CHARACTERS} characters")
    source = expression.translate(_SIGNS).replace("\u2191", "**").strip()
    try:
        tree = ast.parse(source, mode="eval")
        _check_depth(tree)
        evaluator: Any = SimpleEval(operators=_OPERATORS, functions=_FUNCTIONS, names=_NAMES)
        value = evaluator.eval(source)
    except CannotCalculate:
        raise
    except ZeroDivisionError:
        raise CannotCalculate("division by zero") from None
    except OverflowError:
        raise CannotCalculate("the result is too large") from None
    except (SyntaxError, MemoryError, RecursionError):
        raise CannotCalculate("this is not an arithmetic expression; write for example (2+3)*4 or sqrt(2)") from None
    except InvalidExpression as error:
        raise CannotCalculate(_plain(error)) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CannotCalculate(str(error) or "this cannot be calculated") from None
    return _real(value)


def written(value: Number) -> str:
    """A number as people write it: integers in full, others to 15 digits."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(value, ".15g")


def register(mcp: MCPServer[Any]) -> None:
    @mcp.tool(
        title="Calculator",
        annotations=ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def calculator(
        expression: Annotated[str, Field(description="Such as 23*19, (1+2)/3, 2**64, sqrt(2), sin(pi/6) or 15/100*80")],
    ) -> Annotated[CallToolResult, Calculation]:
        """Evaluate an arithmetic expression. Use this for every calculation: it is exact, you are not.

        Takes + - * / // % ** and parentheses, the constants pi, e and tau, and the functions abs, ceil, cos, comb, exp,
        factorial, floor, gcd, hypot, lcm, ln, log (natural, or log(x, base)), log10, log2, max, min, perm, round, sin,
        sqrt, tan and others of their kind; angles are in radians. Integers are exact at any size up to 3,900 digits.
        """
        try:
            value = evaluate(expression)
        except CannotCalculate as error:
            raise ToolError(f"Cannot calculate {expression[:100]!r}: {error}.") from None
        exact = isinstance(value, float) or abs(value) <= _EXACT_IN_JSON
        structured = Calculation(expression=expression.strip(), result=value if exact else str(value))
        text = f"{expression.strip()} = {written(value)}"
        return CallToolResult(
            content=[TextContent(type="text", text=text)], structured_content=structured.model_dump(mode="json")
        )


def _check_depth(tree: ast.AST) -> None:
    level: list[ast.AST] = [tree]
    for _ in range(MOST_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise CannotCalculate("the expression is nested too deeply")


def _plain(error: InvalidExpression) -> str:
    text = re.sub(r" for expression .*$| in expression .*$", "", str(error), flags=re.DOTALL)
    return text[:1].lower() + text[1:].rstrip(".")


def _real(value: Any) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CannotCalculate("the result is not a real number")
    if isinstance(value, float) and not math.isfinite(value):
        raise CannotCalculate("the result is not a finite number")
    return value


def _bounded(bits: float) -> None:
    if bits > MOST_BITS:
        raise CannotCalculate("the result would have thousands of digits, which is too large")


def _multiply(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        _bounded(a.bit_length() + b.bit_length())
    return _numbers(a, b) and a * b


def _numbers(*values: Any) -> bool:
    """Text and lists know these operators too."""
    if not all(isinstance(value, int | float) for value in values):
        raise CannotCalculate("only numbers can be calculated with")
    return True


def _add(a: Number, b: Number) -> Number:
    _numbers(a, b)
    return a + b


def _divide(a: Number, b: Number) -> Number:
    """Exact where it comes out even."""
    if isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0:
        return a // b
    return a / b


def _floor_divide(a: Number, b: Number) -> Number:
    return a // b


def _modulo(a: Number, b: Number) -> Number:
    _numbers(a, b)
    return a % b


def _power(base: Number, exponent: Number) -> Number:
    _numbers(base, exponent)
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0 and abs(base) > 1:
        _bounded(abs(base).bit_length() * exponent)
    return base**exponent


def _factorial(n: int) -> int:
    _bounded(math.lgamma(n + 1) / math.log(2) if n >= 0 else 0)
    return math.factorial(n)


def _combinations(n: int, k: int) -> int:
    _bounded(n.bit_length() * min(k, max(n - k, 0)))
    return math.comb(n, k)


def _permutations(n: int, k: int | None = None) -> int:
    _bounded(n.bit_length() * (n if k is None else k))
    return math.perm(n, k)


def _lcm(*numbers: int) -> int:
    _bounded(sum(n.bit_length() for n in numbers))
    return math.lcm(*numbers)


def _sqrt(x: Number) -> Number:
    """Exact for square integers."""
    if isinstance(x, int) and x >= 0 and (root := math.isqrt(x)) ** 2 == x:
        return root
    return math.sqrt(x)


def _round(x: Number, digits: int = 0) -> Number:
    return round(x, max(-400, min(int(digits), 400))) if digits else round(x)


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: _modulo,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_NAMES: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        math.acos,
        math.acosh,
        math.asin,
        math.asinh,
        math.atan,
        math.atan2,
        math.atanh,
        math.cbrt,
        math.ceil,
        math.cos,
        math.cosh,
        math.degrees,
        math.exp,
        math.floor,
        math.gcd,
        math.hypot,
        math.log,
        math.log10,
        math.log2,
        math.radians,
        math.sin,
        math.sinh,
        math.tan,
        math.tanh,
        math.trunc,
    )
} | {
    "abs": abs,
    "comb": _combinations,
    "factorial": _factorial,
    "lcm": _lcm,
    "ln": math.log,
    "max": max,
    "min": min,
    "perm": _permutations,
    "pow": _power,
    "round": _round,
    "sqrt": _sqrt,
}

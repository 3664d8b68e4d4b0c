"""Print a DataFusion expression as SQL that Lance reads as the same tree.

Lance has a parser of its own: a double-quoted word is a string to it, and some syntax is missing.
Literals and casts are printed as they were written, since Lance gives a bare literal the type of
the column beside it. What has no form that both read is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from geneva.errors import WhereError

if TYPE_CHECKING:
    from datafusion import Expr

# Goes into every digest: raise it whenever the same tree prints as different text.
PRINTER_VERSION = 1

VOLATILE = frozenset(
    {"random", "rand", "uuid", "now", "current_date", "current_time", "current_timestamp", "today"}
    | {"version"}  # changes when Lance is upgraded
)
# Syntax of their own to the parser, which Lance then does not know; in quotes they are functions.
_KEYWORDS = frozenset({"substr", "ceil", "floor"})
_OPERATORS = frozenset(
    {"=", "!=", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"}
    | {"+", "-", "*", "/", "%", "||", "<<", ">>"}
)
# Lance has none of them; printed as calls, they tell the user what to write.
_REGEX_OPERATORS = {
    "~": (False, ""),
    "~*": (False, ", 'i'"),
    "!~": (True, ""),
    "!~*": (True, ", 'i'"),
}
_SUFFIXES = {
    "IsNull": "IS NULL",
    "IsNotNull": "IS NOT NULL",
    "IsTrue": "IS TRUE",
    "IsNotTrue": "IS NOT TRUE",
    "IsFalse": "IS FALSE",
    "IsNotFalse": "IS NOT FALSE",
    # Lance has no UNKNOWN, which is null by another name.
    "IsUnknown": "IS NULL",
    "IsNotUnknown": "IS NOT NULL",
}
_TYPES = {
    "Boolean": "BOOLEAN",
    "Int8": "TINYINT",
    "Int16": "SMALLINT",
    "Int32": "INT",
    "Int64": "BIGINT",
    "UInt8": "TINYINT UNSIGNED",
    "UInt16": "SMALLINT UNSIGNED",
    "UInt32": "INT UNSIGNED",
    "UInt64": "BIGINT UNSIGNED",
    "Float32": "FLOAT",
    "Float64": "DOUBLE",
    "Utf8": "STRING",
    "Date32": "DATE",
    # Never a bare TIMESTAMP: nanoseconds to DataFusion, microseconds to Lance.
    "Timestamp(s)": "TIMESTAMP(0)",
    "Timestamp(ms)": "TIMESTAMP(3)",
    "Timestamp(us)": "TIMESTAMP(6)",
    "Timestamp(µs)": "TIMESTAMP(6)",
    "Timestamp(ns)": "TIMESTAMP(9)",
}
_REFUSED = {
    "Case": "CASE (or ANY)",
    "InSubquery": "a subquery",
    "Exists": "a subquery",
    "ScalarSubquery": "a subquery",
    "SetComparison": "a subquery",
    "AggregateFunction": "an aggregate function",
    "GroupingSet": "an aggregate function",
    "WindowFunction": "a window function",
    "Placeholder": "a placeholder",
    "RLike": "SIMILAR TO",
    "SimilarTo": "SIMILAR TO",
    "Unnest": "unnest",
    "Wildcard": "*",
}
_INT64_MIN = -(2**63)


class SqlPrinter:
    """Print expressions over one schema.

    Attributes
    ----------
    columns
        The columns that they read.
    renames
        Functions that were called by another name -> the name they are printed with.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.columns: set[str] = set()
        self.renames: dict[str, str] = {}
        self._schema = schema
        self._rules: dict[str, Callable[[Expr], str]] = {
            "Column": self._field,
            "Alias": self._alias,
            "Literal": lambda expr: print_literal(expr.python_value()),
            "BinaryExpr": self._binary,
            "Not": lambda expr: f"NOT {self._wrapped(_only(expr))}",
            "Negative": lambda expr: f"-{self._wrapped(_only(expr))}",
            "Between": self._between,
            "InList": self._in_list,
            "Like": self._like,
            "Cast": self._cast,
            "TryCast": self._try_cast,
            "ScalarFunction": self._function,
        }

    def print(self, expr: Expr) -> str:
        """Return ``expr`` as SQL; raise `WhereError` if there is no form that Lance shares."""
        variant = expr.variant_name()
        if suffix := _SUFFIXES.get(variant):
            return f"{self.operand(_only(expr))} {suffix}"
        rule = self._rules.get(variant)
        if rule is None:
            raise _unsupported(_REFUSED.get(variant, expr.canonical_name()))
        return rule(expr)

    def _wrapped(self, expr: Expr) -> str:
        return f"({self.print(expr)})"

    def operand(self, expr: Expr) -> str:
        """Print ``expr`` so that no neighbour's precedence can pull it apart."""
        inner = self._called(expr) if expr.variant_name() == "Alias" else expr
        variant = inner.variant_name()
        atom = variant in ("Column", "Literal", "Cast", "TryCast", "ScalarFunction")
        # A match prints as a call, and a call must print the same when it is parsed again.
        atom |= variant == "BinaryExpr" and inner.rex_call_operator() in ("~", "~*")
        return self.print(inner) if atom else self._wrapped(inner)

    def _binary(self, expr: Expr) -> str:
        operator = expr.rex_call_operator()
        if operator in ("AND", "OR"):
            return f" {operator} ".join(self.operand(part) for part in _chain(expr, operator))
        left, right = expr.rex_call_operands()
        if operator in _REGEX_OPERATORS:
            negated, flags = _REGEX_OPERATORS[operator]
            call = f"regexp_like({self.print(left)}, {self.print(right)}{flags})"
            return f"NOT ({call})" if negated else call
        if operator not in _OPERATORS:
            raise _unsupported(f"the operator {operator}")
        return f"{self.operand(left)} {operator} {self.operand(right)}"

    def _between(self, expr: Expr) -> str:
        value, low, high = expr.rex_call_operands()
        negation = "NOT " if expr.to_variant().negated() else ""
        bounds = f"{self.operand(low)} AND {self.operand(high)}"
        return f"{self.operand(value)} {negation}BETWEEN {bounds}"

    def _in_list(self, expr: Expr) -> str:
        value, *choices = expr.rex_call_operands()
        negation = "NOT " if expr.to_variant().negated() else ""
        listed = ", ".join(map(self.operand, choices))
        return f"{self.operand(value)} {negation}IN ({listed})"

    def _like(self, expr: Expr) -> str:
        value, pattern = expr.rex_call_operands()
        like = expr.to_variant()
        negation = "NOT " if like.negated() else ""
        # The tree does not say which of the two it is; only its text does.
        rest = expr.canonical_name().removeprefix(f"{value.canonical_name()} {negation}")
        word = "ILIKE" if rest.startswith("ILIKE ") else "LIKE"
        escape = like.escape_char()
        if escape not in (None, "\\"):
            raise _unsupported(f"LIKE ... ESCAPE {_quoted(escape)} (only the backslash works)")
        ending = f" ESCAPE {_quoted(escape)}" if escape else ""
        return f"{self.operand(value)} {negation}{word} {self.operand(pattern)}{ending}"

    def _cast(self, expr: Expr) -> str:
        inner, target = _only(expr), _cast_target(expr, "CAST")
        if sql_type := _sql_type(target):
            return f"CAST({self.print(inner)} AS {sql_type})"
        return f"arrow_cast({self.print(inner)}, {_quoted(target)})"

    def _try_cast(self, expr: Expr) -> str:
        inner, target = _only(expr), _cast_target(expr, "TRY_CAST")
        sql_type = _sql_type(target)
        if sql_type is None:
            raise _unsupported(f"try_cast to {target}")
        return f"TRY_CAST({self.print(inner)} AS {sql_type})"

    def _alias(self, expr: Expr) -> str:
        return self.print(self._called(expr))

    def _called(self, alias: Expr) -> Expr:
        """Return the call that DataFusion renamed: `length(s)` is `character_length(s)` to it."""
        inner, name = _only(alias), alias.canonical_name()
        if inner.variant_name() != "ScalarFunction" or not name.endswith(")"):
            raise _unsupported("an alias (AS)")
        called = name.removeprefix(f"{inner.canonical_name()} AS ").split("(")[0]
        self.renames[called] = inner.rex_call_operator()
        return inner

    def _function(self, expr: Expr) -> str:
        name = expr.rex_call_operator()
        if name in VOLATILE:
            raise WhereError(
                f"where calls {name}(), whose value changes from call to call; "
                "a resumed job must select the same rows"
            )
        if name == "get_field" and self._resolved(expr):
            return self._field(expr)
        called = quote_name(name) if name in _KEYWORDS else name
        return f"{called}({', '.join(self.print(arg) for arg in expr.rex_call_operands())})"

    def _field(self, expr: Expr) -> str:
        path, _ = self._resolved(expr) or ((), None)
        if any("`" in name for name in path):
            raise _unsupported(f"the column {'.'.join(path)!r}, whose name holds a backtick")
        self.columns.add(path[0])
        return ".".join(quote_name(name) for name in path)

    def _resolved(self, expr: Expr) -> tuple[tuple[str, ...], pa.DataType] | None:
        """Return names and type of a column or of a struct field below it, else ``None``."""
        if expr.variant_name() == "Column":
            name = expr.to_variant().name()
            return (name,), self._schema.field(name).type
        if expr.variant_name() != "ScalarFunction" or expr.rex_call_operator() != "get_field":
            return None
        base, *keys = expr.rex_call_operands()
        found = self._resolved(base)
        for key in map(_literal, keys):
            if found is None or not pa.types.is_struct(found[1]):
                return None
            if not isinstance(key, pa.StringScalar):
                return None
            found = _child(found[0], found[1], str(key))
        return found


def _child(
    path: tuple[str, ...], struct: pa.StructType, name: str
) -> tuple[tuple[str, ...], pa.DataType]:
    names = [field.name for field in struct]
    if name not in names:
        raise WhereError(
            f"where names an unknown field {name!r} of {'.'.join(path)!r}; "
            f"its fields are: {', '.join(names)}"
        )
    return (*path, name), struct.field(name).type


def quote_name(name: str) -> str:
    """Return a name as Lance quotes it."""
    return f"`{name}`"


def print_literal(value: pa.Scalar) -> str:
    """Return a literal that both parsers read back as the same value of the same type."""
    number = value.as_py() if not isinstance(value, pa.MonthDayNanoIntervalScalar) else None
    match value:
        case pa.MonthDayNanoIntervalScalar():
            return _interval(value)
        case pa.StringScalar():
            return _quoted(str(number))
        case pa.BinaryScalar() if number is not None:
            return f"X'{number.hex()}'"
        case pa.DoubleScalar() if number is not None and not math.isfinite(number):
            return f"CAST({_quoted(str(number))} AS DOUBLE)"
        case pa.Int64Scalar() if number == _INT64_MIN:
            # Lance reads the digits before the sign, overflows and makes a float of them.
            return f"CAST('{number}' AS BIGINT)"
        case pa.NullScalar():
            return "NULL"
        case pa.BooleanScalar() if number is not None:
            return "true" if number else "false"
        case pa.DoubleScalar() | pa.Int64Scalar() | pa.UInt64Scalar() if number is not None:
            return repr(number)
    raise _unsupported(f"a literal of type {value.type}")


def _interval(value: pa.MonthDayNanoIntervalScalar) -> str:
    months, days, nanoseconds = value.as_py()
    text = f"{months} months {days} days {nanoseconds} nanoseconds"
    return f"arrow_cast('{text}', 'Interval(MonthDayNano)')"


def _chain(expr: Expr, operator: str) -> list[Expr]:
    """Return the operands of ``a AND b AND c``, however long, without recursion."""
    parts: list[Expr] = []
    while expr.variant_name() == "BinaryExpr" and expr.rex_call_operator() == operator:
        expr, right = expr.rex_call_operands()
        parts.append(right)
    return [expr, *reversed(parts)]


def _cast_target(expr: Expr, word: str) -> str:
    """Return the type that a cast converts to, as Arrow writes it; only its text says so."""
    before = f"{word}({_only(expr).canonical_name()} AS "
    return expr.canonical_name().removeprefix(before).removesuffix(")")


def _sql_type(target: str) -> str | None:
    if decimal := re.fullmatch(r"Decimal128\((\d+), (\d+)\)", target):
        return f"DECIMAL({decimal[1]}, {decimal[2]})"
    return _TYPES.get(target)


def _literal(expr: Expr) -> pa.Scalar | None:
    return expr.python_value() if expr.variant_name() == "Literal" else None


def _only(expr: Expr) -> Expr:
    return expr.rex_call_operands()[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _unsupported(what: str) -> WhereError:
    return WhereError(f"where cannot use {what}: Lance cannot evaluate it in a filter")

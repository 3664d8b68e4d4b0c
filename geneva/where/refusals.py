"""Say why a filter is refused, in words about the filter, and propose another."""

from __future__ import annotations

import re

from geneva.errors import WhereError
from geneva.storage.lance import FilterPlanner
from geneva.where.sql_text import SqlText, Token

_SHOWN = 300
_SOURCE = re.compile(r",? ?/[^\s,]*\.rs:\d+(:\d+)?")
_PREFIX = re.compile(
    r"(Invalid user input|Error during planning|Query Execution error|Execution error"
    r"|Error parsing function|LanceError\(\w+\)|Encountered internal error): ?"
)
_LITERAL = re.compile(
    r"Received literal (\w+)\((.*?)\) and could not convert to literal of type '(.*?)'", re.DOTALL
)
_INVALID = re.compile(r"Invalid function '(.+?)'(?:\.\s*Did you mean '(\w+)'\?)?", re.DOTALL)
_NOT_SQL = re.compile(r"Expression '(.*)' is not supported SQL in lance", re.DOTALL)
_COMPARED = frozenset({"=", "==", "!=", "<>", "<", "<=", ">", ">="})
_BEFORE_A_VALUE = _COMPARED | {"like", "ilike", "(", ","}
_VALUES = frozenset(
    {"true", "false", "null", "not", "case", "cast", "interval", "date", "timestamp"}
)
_NOTHING = Token("mark", "", 0, 0, 0)
_MARKS = {
    "&&": "write AND for &&",
    "||": "|| joins strings; write OR between conditions",
    "===": "write = for ===",
    "!": "write NOT for !",
    ";": "a where is one expression, without ';'",
} | {
    quote: f"{quote} is no quote in SQL; a string takes '...'"
    for quote in "\u2018\u2019\u201c\u201d"
}
_EXAMPLES = {
    "Date32": "date '2020-01-31'",
    "Timestamp": "timestamp '2020-01-31 00:00:00'",
    "Decimal128": "CAST('1.10' AS DECIMAL(10, 2))",
    "Utf8": "'text'",
    "LargeUtf8": "'text'",
    "Boolean": "true",
    "Binary": "X'00ff'",
}


def explain_lance(message: str, words: SqlText, planner: FilterPlanner, form: str) -> WhereError:
    """Return Lance's objection to a filter.

    Parameters
    ----------
    message
        Lance's.
    words
        The filter.
    planner
        Lance, for the table's schema.
    form
        The same condition as we print it: Lance may take that.
    """
    if "does not return a boolean" in message:
        found = planner.type_of(form)
        return WhereError(f"where must be true or false for each row, but it is of type {found}")
    if literal := _LITERAL.search(message):
        return WhereError(_unlike(*literal.groups()) + hint(words))
    if unknown := _INVALID.search(message):
        guess = f"; did you mean {unknown[2]}()?" if unknown[2] else ""
        return WhereError(f"where calls {unknown[1]}(), a function that LanceDB lacks{guess}")
    tip = _rewritten(planner, form) or hint(words)
    if lacks := _NOT_SQL.search(message):
        return WhereError(f"where cannot use {_short(lacks[1])}: LanceDB lacks it in a filter{tip}")
    return WhereError(f"where makes no sense for this table: LanceDB says: {_plain(message)}{tip}")


def hint(words: SqlText) -> str:
    """Return the habits of other languages in a filter, and their form in SQL."""
    tokens = words.tokens
    around = zip((_NOTHING, *tokens), tokens, (*tokens[1:], _NOTHING), strict=False)
    found = next((told for three in around if (told := _habit(*three))), "")
    return f" ({found})" if found else ""


def _habit(before: Token, token: Token, after: Token) -> str:
    match token.kind:
        case "mark":
            return _MARKS.get(token.text, "")
        case "open" if token.text == "[" and before.text == "in":
            return "IN takes its values in ( )"
        case "name" if token.text[0] == '"' and before.text in _BEFORE_A_VALUE:
            return f"a string takes single quotes: '{_short(token.text[1:-1])}'"
        case "word" if token.text in ("none", "nil", "undefined"):
            return "what is not there is null: write IS NULL, without ="
        case "word" if before.text in _COMPARED and token.text not in _VALUES:
            called = after.kind in ("open", "string") or after.text == "."
            return "" if called else f"a string takes single quotes: '{_short(token.text)}'"
        case _:
            return ""


def _unlike(kind: str, value: str, wanted: str) -> str:
    """Return that a literal is not of the type of the column beside it."""
    shown = f"'{value.strip(chr(34))}'" if kind in ("Utf8", "LargeUtf8") else value
    example = _EXAMPLES.get(wanted.split("(")[0])
    number = wanted.startswith(("Int", "UInt", "Float"))
    way = f"write a literal like {example}" if example else "write a literal of that type"
    if number and kind.startswith(("Int", "UInt", "Float")):
        wider = "double" if kind.startswith("Float") else "bigint"
        way = f"convert the column to compare it all the same: cast(column as {wider})"
    elif number:
        way = "write a number, without quotes"
    return (
        f"where makes no sense for this table: {_short(shown)} stands beside values of type "
        f"{wanted}, and LanceDB cannot take it for one of them; {way}"
    )


def _rewritten(planner: FilterPlanner, form: str) -> str:
    """Return the condition in a form that Lance takes, if our own is one."""
    try:
        planner.resolved(form)
    except ValueError:
        return ""
    return f"; LanceDB takes the same condition as: {_short(form)}"


def _plain(message: str) -> str:
    """Return Lance's words without those about itself."""
    line = _PREFIX.split(_SOURCE.sub("", message))[-1]
    return _short(" ".join(line.split()).rstrip(" .)"))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

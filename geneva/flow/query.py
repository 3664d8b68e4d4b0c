"""The query language over jobs: text -> tree of conditions, with positions for errors.

::

    query := '' | or ;  or := and (('OR' | '|') and)* ;  and := unit ((',' | 'AND') unit)*
    unit  := '(' or ')' | field ':' cond
    cond  := '~'? (cmp scalar | a '..' b | value ('|' value)* | '%'? text '%'? | 'nil')

A bar is OR only before ``word:`` or ``(``, and a further value elsewhere. A value without quotes
ends at ``, | ( )`` or at the words AND and OR; in double quotes everything is literal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NoReturn

from geneva.errors import QueryError
from geneva.flow.fields import FIELDS, JobField, Kind, field_named
from geneva.model.steps import as_number

Op = Literal[
    "eq", "in", "lt", "le", "gt", "ge", "range", "nil", "contains", "startswith", "endswith"
]
Scalar = str | int | float | bool | None

_COMPARISONS: dict[str, Op] = {
    "<=": "le", "=<": "le", ">=": "ge", "=>": "ge", "<": "lt", ">": "gt", "=": "eq",
}  # fmt: skip
_FIELD = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*:")
_WORD = re.compile(r"(?:(?<=\s)|(?<=[,()]))(and|or)(?=[\s(]|$)", re.IGNORECASE)
_ENDS = re.compile(r'[,|()"]|(?:(?<=\s)|(?<=[,()]))(?:and|or)(?=[\s(]|$)', re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one field of a job; ``value`` is a tuple for ``in`` and ``range``."""

    field: JobField
    op: Op
    value: Scalar | tuple[Scalar, ...] = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class All:
    """Every part must hold; with no parts, every job matches."""

    parts: tuple[Tree, ...] = ()


@dataclass(frozen=True, slots=True)
class Any:
    """At least one part must hold."""

    parts: tuple[Tree, ...]


Tree = Condition | All | Any


def parse_query(text: str) -> Tree:
    """Read a query.

    Raises
    ------
    QueryError
        It does not parse, names an unknown field, or asks a field for what it does not take;
        ``span`` says where.
    """
    if not text.strip():
        return All()
    parser = _QueryParser(text)
    tree = parser.either()
    if not parser.at_end():
        parser.fail("this is left over")
    return tree


class _QueryParser:
    """A recursive descent over the text; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def either(self) -> Tree:
        """Read units joined by OR; a bar is one, as values took the bars that are theirs."""
        parts = [self.both()]
        while self.skip("|") or self.word("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def both(self) -> Tree:
        parts = [self.unit()]
        while self.skip(",") or self.word("and"):
            parts.append(self.unit())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def unit(self) -> Tree:
        if self.skip("("):
            self.depth += 1
            if self.depth > 50:
                self.fail("parentheses are more than 50 deep")
            tree = self.either()
            if not self.skip(")"):
                self.fail("a closing parenthesis is missing")
            self.depth -= 1
            return tree
        found = _FIELD.match(self.text, self.at)
        if found is None:
            self.fail('a condition is "field: value"; a value that holds a comma, a bar, "and" or '
                      '"or" needs double quotes')  # fmt: skip
        start, self.at = found.start(1), found.end()
        field = field_named(found[1], (start, found.end(1)))
        return self.condition(field)

    def condition(self, field: JobField) -> Condition:
        start = self.at
        negated = self.skip("~")
        op = next((o for sign, o in _COMPARISONS.items() if self.skip(sign)), None)
        pieces = [self.value()]
        while op is None and self.further_value():
            pieces.append(self.value())
        made = _condition(field, op, pieces, negated, (start, self.at))
        check_takes(made, (start, self.at))
        return made

    def further_value(self) -> bool:
        """Take a bar, unless another condition follows it."""
        mark = self.at
        if not self.skip("|"):
            return False
        if _FIELD.match(self.text, self.at) or self.text[self.at :].lstrip().startswith("("):
            self.at = mark
            return False
        return True

    def value(self) -> _Piece:
        """Read one value: text in quotes, with a percent sign outside, or all up to an end."""
        self.blanks()
        start = self.at
        percent = self.text.startswith('%"', self.at)
        if percent or self.text.startswith('"', self.at):
            self.at += percent
            text = self.quoted()
            trailing = self.skip("%")
            return _Piece(text, True, percent, trailing, (start, self.at))
        found = _ENDS.search(self.text, self.at)
        end = found.start() if found else len(self.text)
        text = self.text[self.at : end].strip()
        self.at = end
        if not text:
            self.fail("a value is needed here")
        if self.text.startswith('"', self.at):
            self.fail("double quotes belong around the whole value")
        # One percent sign alone is no pattern.
        leading, trailing = text.startswith("%"), text.endswith("%") and len(text) > 1
        if leading or trailing:
            text = text[leading : len(text) - trailing].strip()
        return _Piece(text, False, leading, trailing, (start, self.at))

    def quoted(self) -> str:
        found = _QUOTED.match(self.text, self.at)
        if found is None:
            self.fail("the closing double quote is missing")
        self.at = found.end()
        return re.sub(r'\\(["\\])', r"\1", found[1])

    def blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def skip(self, sign: str) -> bool:
        """Take a sign, after blanks, if it is the next."""
        self.blanks()
        if self.text.startswith(sign, self.at):
            self.at += len(sign)
            return True
        return False

    def word(self, word: str) -> bool:
        self.blanks()
        found = _WORD.match(self.text, self.at)
        if found is None or found[1].lower() != word:
            return False
        self.at = found.end()
        return True

    def at_end(self) -> bool:
        self.blanks()
        return self.at == len(self.text)

    def fail(self, why: str) -> NoReturn:
        self.blanks()
        end = min(self.at + 1, len(self.text))
        raise QueryError(
            f"syntax error at character {self.at + 1} of {_short(self.text)!r}: {why}",
            (self.at, max(end, self.at)),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """A value as it was written."""

    text: str
    quoted: bool
    leading: bool  # percent signs
    trailing: bool
    span: tuple[int, int]


def _condition(
    field: JobField, op: Op | None, pieces: list[_Piece], negated: bool, span: tuple[int, int]
) -> Condition:
    first = pieces[0]
    pattern = any(p.leading or p.trailing for p in pieces)
    if pattern and (op is not None or len(pieces) > 1):
        raise QueryError(f"a pattern with % stands alone after {field.text}:", span)
    if op is not None:
        return Condition(field, op, _scalar(field, first), negated)
    if pattern:
        if not first.text:
            raise QueryError(f"{field.text}: a pattern needs text beside its %", span)
        how: Op = "contains" if first.leading and first.trailing else "endswith"
        how = how if first.leading else "startswith"
        return Condition(field, how, first.text, negated)
    if len(pieces) > 1:
        return Condition(field, "in", tuple(_scalar(field, p) for p in pieces), negated)
    if not first.quoted and first.text.lower() == "nil":
        return Condition(field, "nil", None, negated)
    if not first.quoted and ".." in first.text and field.kind is not Kind.ARTIFACT:
        ends = [part.strip() for part in first.text.split("..")]
        if len(ends) != 2 or not all(ends):
            raise QueryError(f"{field.text}: a range has two ends, as in 1..2", first.span)
        bounds = (_scalar(field, _Piece(e, False, False, False, first.span)) for e in ends)
        return Condition(field, "range", tuple(bounds), negated)
    return Condition(field, "eq", _scalar(field, first), negated)


def _scalar(field: JobField, piece: _Piece) -> Scalar:
    """Read a value as the field holds it: numbers are numbers, unless they stand in quotes."""
    match field.kind:
        case Kind.NUMBER:
            number = as_number(piece.text)
            if number is None:
                raise QueryError(f"{field.text} takes a number, not {piece.text!r}", piece.span)
            return number
        case Kind.MOMENT:
            whole(piece.text, piece.span)
            return piece.text
        case Kind.JSON if not piece.quoted:
            number = as_number(piece.text)
            if number is not None:
                return number
            return {"true": True, "false": False}.get(piece.text.lower(), piece.text)
        case _:
            return piece.text


def check_takes(made: Condition, span: tuple[int, int]) -> None:
    """Refuse an operator that the field does not take, naming those that it does."""
    kind, field = made.field.kind, made.field
    if made.op not in kind.takes:
        sign = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "range": "..", "eq": "="}
        shown = sign.get(made.op, "|" if made.op == "in" else "%")
        raise QueryError(
            f"{field.text} does not take {shown}: it takes {kind.says}; put the value in double "
            "quotes if the sign belongs to it",
            span,
        )
    number = isinstance(made.value, int | float) and not isinstance(made.value, bool)
    if kind is Kind.JSON and made.op in ("lt", "le", "gt", "ge") and not number:
        raise QueryError(f"{field.text}: only a number can be compared with < and >", span)


_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d)?(\.\d{1,6})?\s*(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)


def whole(text: str, span: tuple[int, int] | None = None) -> tuple[datetime, datetime]:
    """Return the half-open time that a text means: a day, a minute, a second or a microsecond.

    Raises
    ------
    QueryError
        There is no such date.
    """
    found = _MOMENT.fullmatch(text.strip())
    try:
        start = datetime.fromisoformat(text.strip()) if found else None
    except ValueError:
        start = None
    if found is None or start is None:
        raise QueryError(
            f"{text!r} is no date; write 2021-05-01, 2021-05-01 10:10 or 2021-05-01T10:10:30+02:00",
            span,
        )
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    length = timedelta(days=1)
    for part, shorter in ((2, "minutes"), (3, "seconds"), (4, "microseconds")):
        length = timedelta(**{shorter: 1}) if found[part] else length
    try:
        return start.astimezone(UTC), (start + length).astimezone(UTC)
    except OverflowError:
        raise QueryError(f"{text!r} is beyond the calendar", span) from None


def parse_sort(text: str) -> tuple[tuple[JobField, bool], ...]:
    """Read a sort order: fields joined by commas, each with ``-`` for descending.

    Raises
    ------
    QueryError
        It names a field that jobs do not have, or that has no order.
    """
    made: list[tuple[JobField, bool]] = []
    at = 0
    for part in text.split(",") if text.strip() else ():
        name, start = part.strip(), at + len(part) - len(part.lstrip())
        at += len(part) + 1
        descending = name.startswith("-")
        span = (start, start + max(1, len(name)))
        field = field_named(name.removeprefix("-").strip(), span)
        if field.kind in (Kind.TAGS, Kind.ARTIFACT):
            raise QueryError(f"{field.text} has no order to sort by", span)
        made.append((field, descending))
    return tuple(made)


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


__all__ = ["FIELDS", "All", "Any", "Condition", "Tree", "parse_query", "parse_sort", "whole"]

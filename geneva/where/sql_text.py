"""Read a filter as words and brackets, and bound it, before any native parser sees it.

The native parsers recurse: some ten thousand conditions overflow the stack of the process, and
brackets deeper than their own limit make them try 2**n readings. Everything here is linear.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from geneva.errors import WhereError

MAX_BYTES = 1 << 20
MAX_WORDS = 20_000
MAX_CONDITIONS = 3_000  # Lance's planner overflowed a stack of 8 MB between 20,000 and 40,000
MAX_LISTED = 100_000  # Lance plans 100,000 values in 0.2 to 0.5 s, once for each fragment
MAX_RUN = 120  # operators in a row become a tree of that depth
MAX_DEPTH = 40  # both parsers give up at 50 levels, and then try each of them in two ways
LONG_LIST = 64

_NUMBER = r"(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"
_STRING = r"'[^']*+(?:''[^']*+)*+'"
_PLAIN = rf"(?:[+-]?{_NUMBER}|{_STRING})"
_LONG = rf"\(\s*+{_PLAIN}\s*+(?:,\s*+{_PLAIN}\s*+){{{LONG_LIST - 1},}}+\)"
_ITEM = re.compile(_PLAIN)
_CANONICAL = re.compile(r"0|-?[1-9]\d{0,17}")
_REMARK = r"--[^\n]*+|/\*(?:(?!\*/|/\*).)*+\*/"
_TOKEN = re.compile(
    rf"""(?P<space>(?:\s++|{_REMARK})++)
    |(?P<string>{_STRING})|(?P<name>`[^`]*+`|"[^"]*+(?:""[^"]*+)*+")
    |(?P<number>{_NUMBER})
    |(?P<list>[iI][nN]\s*+(?P<values>{_LONG}))
    |(?P<word>[^\W\d]\w*+)|(?P<open>[(\[{{])|(?P<close>[)\]}}])
    |(?P<mark>/\*|&&|\|\||===?|[<>!]=|<>|::|.)""",
    re.VERBOSE | re.DOTALL,
)
_CLOSED_BY = {")": "(", "]": "[", "}": "{", "end": "case"}
_PREFIXES = frozenset({"not", "-", "+", "~", "!"})
_UNCLOSED = {
    "'": "a string is never closed; a quote within one is written twice, 'it''s'",
    '"': "a name in double quotes is never closed",
    "`": "a name in backticks is never closed",
    "/*": "a comment is never closed, or holds another one",
    "$": "'$' has no meaning in a filter",
}


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a filter: a word, or a stand-in for one.

    Attributes
    ----------
    kind
        ``word``, ``name`` (in quotes), ``string``, ``number``, ``list``, ``open``, ``close`` or
        ``mark``.
    text
        As it was written; words in lower case.
    start, end
        Its characters, half-open.
    level
        How many brackets are open around it.
    """

    kind: str
    text: str
    start: int
    end: int
    level: int


@dataclass(frozen=True, slots=True)
class SqlText:
    """A filter whose size and depth the native parsers can bear.

    Attributes
    ----------
    text
        The filter; its comments are blank.
    tokens
        Its words. A long list of plain values after IN is one of them.
    joins
        Of each place between tokens: how many AND and OR are before it.
    """

    text: str
    tokens: tuple[Token, ...]
    joins: tuple[int, ...] = field(repr=False)

    def spelled(
        self, spell: Callable[[Token], str | None], start: int = 0, stop: int | None = None
    ) -> str:
        """Return the text of some tokens; those for which ``spell`` returns text, are that."""
        stop = len(self.tokens) if stop is None else stop
        parts, at = [], self.tokens[start].start
        for token in self.tokens[start:stop]:
            new = spell(token)
            if new is not None:
                parts += [self.text[at : token.start], new]
                at = token.end
        return "".join([*parts, self.text[at : self.tokens[stop - 1].end]])

    def joined_by(self, word: str, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the tokens between the ANDs or ORs that are outside of all brackets."""
        tokens, level, bounds, between = self.tokens, self.tokens[start].level, [start], 0
        for k in range(start, stop):
            token = tokens[k]
            if token.level != level or token.kind != "word":
                continue
            if token.text == "between":
                between += 1
            elif token.text == "and" and between:
                between -= 1
            elif token.text == word:
                bounds += [k, k + 1]
        bounds.append(stop)
        return list(zip(bounds[::2], bounds[1::2], strict=True))

    def closing(self, start: int) -> int:
        """Return which token closes a bracket."""
        level = self.tokens[start].level
        return next(k for k in range(start + 1, len(self.tokens)) if self.tokens[k].level == level)


def read(text: str) -> SqlText:
    """Return the words of a filter.

    Raises
    ------
    WhereError
        If it is larger or deeper than the native parsers can bear, or a quote is not closed.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise WhereError(
            f"where holds a character that is no text (a lone surrogate, at {error.start})"
        ) from None
    _bound("bytes of text", size, MAX_BYTES)
    reader = _Reader()
    blank = [reader.take(found) for found in _TOKEN.finditer(text)]
    return SqlText("".join(blank), tuple(reader.tokens), tuple(reader.joins))


def _bound(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise WhereError(
            f"where has more than {limit:,} {what}. Use one list, `id IN (...)`, or several "
            "calls, or write a column that says which rows are meant and filter by it"
        )


class _Reader:
    """Takes one word after the other, and counts."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.joins = [0]
        self._open: list[tuple[str, int, int]] = []  # bracket, depth and run around it
        self._depth = self._run = self._prefixes = self._listed = 0

    def take(self, found: re.Match[str]) -> str:
        """Note a word; return its text, or blanks for a comment."""
        kind, written, at = found.lastgroup, found[0], found.start()
        if kind == "space":
            if written.isspace():
                return written
            return "\n".join(" " * len(line) for line in written.split("\n"))
        if kind == "list":
            self._add("word", "in", at, at + 2)
            at = found.start("values")
            self._listed += written.count(",") + 1
            _bound("values in its lists", self._listed, MAX_LISTED)
            self._add("list", found["values"], at, found.end())
        elif kind == "word":
            self._add("word", written.lower(), at, found.end())
        else:
            if kind == "mark" and written in _UNCLOSED:
                end = found.end() if written == "$" else len(found.string.rstrip())
                raise _at(WhereError(f"where does not parse: {_UNCLOSED[written]}"), at, end)
            if kind == "string":
                self._refuse_escapes(at)
            self._add(str(kind), written, at, found.end())
        return written

    def _refuse_escapes(self, at: int) -> None:
        """Refuse E'..', in which a quote may hide behind a backslash."""
        last = self.tokens[-1] if self.tokens else None
        if last is not None and last.end == at and last.text == "e":
            message = "where cannot use E'...': Lance cannot evaluate it in a filter"
            raise _at(WhereError(message), last.start, at)

    def _add(self, kind: str, word: str, start: int, end: int) -> None:
        opened, joins = self._open, 0
        if opened and opened[-1][0] == _CLOSED_BY.get(word) and kind != "name":
            _, self._depth, self._run = opened.pop()
        self.tokens.append(Token(kind, word, start, end, len(opened)))
        if kind == "word" and (word == "and" or word == "or"):
            joins, self._run = 1, 0
        else:
            self._run = 0 if word == "," else self._run + 1
        self.joins.append(self.joins[-1] + joins)
        self._prefixes = self._prefixes + 1 if word in _PREFIXES else 0
        if kind == "open" or (kind == "word" and word == "case"):
            opened.append((word, self._depth, self._run))
            self._depth, self._run, self._prefixes = self._depth + 1 + self._prefixes, 0, 0
        if self._depth + self._prefixes > MAX_DEPTH or self._run > MAX_RUN:
            message = (
                f"where is nested too deeply: at most {MAX_DEPTH} brackets and NOTs within each "
                f"other, and {MAX_RUN} words in a row without AND, OR or a comma; simplify it"
            )
            raise _at(WhereError(message), start, end)
        if self.joins[-1] >= MAX_CONDITIONS or len(self.tokens) > MAX_WORDS:
            _bound("conditions (AND, OR)", self.joins[-1] + 1, MAX_CONDITIONS)
            _bound("words", len(self.tokens), MAX_WORDS)


@lru_cache(maxsize=8)
def sample(token: Token) -> tuple[str, ...]:
    """Return some values of a long list: the first of each kind that parsers tell apart."""
    items = items_of(token)
    kinds = {
        (i[0] in "'+-" and i[0], "." in i or "e" in i or "E" in i, len(i) > 18): i
        for i in reversed(items)
    }
    return tuple(dict.fromkeys([items[0], items[-1], *kinds.values()]))


def items_of(token: Token) -> list[str]:
    """Return the values of a long list as they were written."""
    return _ITEM.findall(token.text)


def print_item(item: str) -> str:
    """Return a value of a long list in its canonical form."""
    if item[0] == "'" or _CANONICAL.fullmatch(item):
        return item
    if item.lstrip("+-").isdigit() and len(item) < 25 and -(2**63) <= (n := int(item)) < 2**64:
        return str(n)
    number = float(item)
    if math.isfinite(number):
        return repr(number)
    return f"CAST('{number}' AS DOUBLE)"


def backticked(token: Token) -> str | None:
    """Return a name in double quotes as Lance quotes names."""
    if token.kind != "name" or token.text[0] == "`":
        return None
    name = token.text[1:-1].replace('""', '"')
    if "`" in name:
        message = f"where cannot use the column {name!r}, whose name holds a backtick"
        raise _at(WhereError(message), token.start, token.end)
    return f"`{name}`"


def _at(error: WhereError, start: int, end: int) -> WhereError:
    error.span = (start, end)
    return error

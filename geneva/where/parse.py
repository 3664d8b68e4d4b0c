"""Check a ``where`` and turn it into one canonical text with the meaning that Lance gives it.

Lance's reading of the text is what counts: it is what ``tbl.search().where(text)`` selects by.
DataFusion parses the text for the columns it reads and for a canonical form, the same for all
spellings (`geneva.where.sql_printer`). Lance then resolves both, and they must be one expression.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

from geneva.errors import WhereError, did_you_mean
from geneva.storage.lance import FilterPlanner
from geneva.storage.snapshot import without_blob_types
from geneva.where.blame import blamed
from geneva.where.refusals import explain_lance, hint
from geneva.where.sql_printer import PRINTER_VERSION, SqlPrinter
from geneva.where.sql_text import SqlText, Token, backticked, items_of, print_item, read, sample

if TYPE_CHECKING:
    from datafusion import DataFrame, Expr

# Fixed, or names would change from run to run; not a name that a struct column could have,
# or `name.field` would be read as a column of the table.
_FRAME = "__geneva_where__"
_MAX_NAMES_SHOWN = 40
_MAX_GUESSED = 100
_KEPT_CHARS = 10_000
# Each step along a chain of ANDs or ORs in DataFusion's tree copies the rest of it.
_PARSED_AT_ONCE = 64
_UNSPLIT = 500
_STUBS = 20
_UNKNOWN_FUNCTION = re.compile(r"Invalid function '([^']{1,200})'")


@dataclass(frozen=True, slots=True)
class Where:
    """A filter that was found valid for one schema.

    Attributes
    ----------
    sql
        Canonical text, for Lance only: the same condition written otherwise (spacing, quoting,
        redundant parentheses) has the same text.
    columns
        Top-level columns that the filter reads, sorted.
    digest
        SHA-256 in hex of ``sql`` and of the printer's version; what checkpoints are keyed by.
    text
        What the user wrote, for messages.
    """

    sql: str
    columns: tuple[str, ...]
    digest: str
    text: str


def parse_where(text: str, schema: pa.Schema) -> Where:
    """Check ``text`` against ``schema`` and return it in canonical form.

    Parameters
    ----------
    text
        A boolean SQL expression, as `tbl.search().where` takes it. Names may be bare (case is
        kept), in backticks, or in double quotes where Lance does not take those for a string;
        strings take single quotes.
    schema
        The table's schema.

    Returns
    -------
    Where
        Parsing its ``sql`` again gives the same ``sql`` and ``digest``.

    Raises
    ------
    WhereError
        If the text does not parse, names an unknown column, is not boolean, is not
        deterministic, is too large, or is refused by Lance; correct the text at its ``span``.
    """
    try:
        # A notebook, or a watch, asks with the same filter again and again.
        check = _checked if len(text) <= _KEPT_CHARS else _checked.__wrapped__
        return check(text, without_blob_types(schema))
    except WhereError as error:
        if error.span is None and len(text) <= _KEPT_CHARS:
            error.span = blamed(str(error), text)
        raise


@lru_cache(maxsize=256)
def _checked(text: str, schema: pa.Schema) -> Where:
    words = read(text)
    if not words.tokens:
        raise WhereError("where is empty; leave it out to compute every row that needs it")
    front = _Front(words, schema)
    try:
        printed = front.print()
    except RecursionError:
        raise WhereError("where is nested too deeply; simplify it") from None
    sql = front.filled(printed, full=True)
    _refuse_column_of_that_name(sql, schema)
    _require_lances_meaning(words, front, printed, sql)
    digest = hashlib.sha256(f"{PRINTER_VERSION}\n{sql}".encode()).hexdigest()
    return Where(sql, tuple(sorted(front.printer.columns)), digest, text)


class _Parser:
    """Parses expressions over one schema; types are for Lance to judge."""

    def __init__(self, schema: pa.Schema) -> None:
        # Imported here because it takes longer than everything else in `import geneva`.
        from datafusion import SessionConfig, SessionContext

        config = {
            "datafusion.sql_parser.enable_ident_normalization": "false",
            # Lance has no string views, so casts must not make any.
            "datafusion.sql_parser.map_string_types_to_utf8view": "false",
        }
        bare = pa.schema([pa.field(field.name, field.type) for field in schema])
        self._context = SessionContext(SessionConfig(config))
        self._frame: DataFrame = self._context.from_arrow(bare.empty_table(), name=_FRAME)
        self._stubs: set[str] = set()

    def parse(self, text: str) -> Expr:
        """Return the tree of an expression; `ValueError` with DataFusion's words."""
        while True:
            try:
                return self._frame.parse_sql_expr(text)
            except Exception as error:  # DataFusion's Python errors are bare Exceptions
                message = str(error)
            except BaseException as error:  # a Rust panic is not even that
                if type(error).__name__ != "PanicException":
                    raise
                message = str(error)
            if not self._stubbed(message):
                raise ValueError(message)

    def _stubbed(self, message: str) -> bool:
        """Declare a function that only Lance may know: JSON, tokens, geometry."""
        from datafusion import udf

        unknown = _UNKNOWN_FUNCTION.search(message)
        if unknown is None or unknown[1] in self._stubs:
            return False
        if len(self._stubs) >= _STUBS:  # a service must not collect them for ever
            _parser.cache_clear()
            return False
        self._stubs.add(unknown[1])
        stub = udf(lambda *_: None, [], pa.null(), "immutable", name=unknown[1])
        self._context.register_udf(stub)
        self._frame = self._context.table(_FRAME)
        return True


@lru_cache(maxsize=32)
def _parser(schema: pa.Schema) -> _Parser:
    return _Parser(schema)


@lru_cache(maxsize=32)
def _planner(schema: pa.Schema) -> FilterPlanner:
    return FilterPlanner(schema)


class _Front:
    """Prints one filter; a long chain of conditions is taken apart before it is parsed."""

    def __init__(self, words: SqlText, schema: pa.Schema) -> None:
        self.printer = SqlPrinter(schema)
        self.planner = _planner(schema)
        self._words, self._schema = words, schema
        self._marker = "list"
        while self._marker in words.text:
            self._marker += "-"

    def print(self) -> str:
        """Return the canonical text, in which a marker stands for each long list."""
        return self._print(0, len(self._words.tokens), operand=False)

    def filled(self, sql: str, *, full: bool) -> str:
        """Return printed text with the long lists put back, or some of their values."""
        lists = {t.start: t for t in self._words.tokens if t.kind == "list"}
        if not lists:
            return sql

        def listed(found: re.Match[str]) -> str:
            token = lists[int(found[1])]
            return f"({', '.join(map(print_item, items_of(token) if full else sample(token)))})"

        return re.sub(rf"\('{re.escape(self._marker)}(\d+)'\)", listed, sql)

    def _print(self, start: int, stop: int, *, operand: bool) -> str:
        words = self._words
        count = words.joins[stop] - words.joins[start]
        if count <= _PARSED_AT_ONCE:
            return self._parsed(start, stop, operand)
        first = words.tokens[start]
        if first.kind == "open" and words.closing(start) == stop - 1:
            return self._print(start + 1, stop - 1, operand=operand)
        for word in ("or", "and"):
            parts = words.joined_by(word, start, stop)
            if len(parts) > 1:
                sql = f" {word.upper()} ".join(self._print(*part, operand=True) for part in parts)
                return f"({sql})" if operand else sql
        if first.text == "not":
            sql = f"NOT ({self._print(start + 1, stop, operand=False)})"
            return f"({sql})" if operand else sql
        if count > _UNSPLIT:
            raise WhereError(f"where joins more than {_UNSPLIT} conditions within one operand")
        return self._parsed(start, stop, operand)

    def _parsed(self, start: int, stop: int, operand: bool) -> str:
        if start == stop:
            raise WhereError("where does not parse: a condition is missing beside AND or OR")
        text = self._words.spelled(
            lambda t: f"('{self._marker}{t.start}')" if t.kind == "list" else None, start, stop
        )
        try:
            expr = _parser(self._schema).parse(text)
        except ValueError as error:
            whole = stop - start == len(self._words.tokens)
            self._refuse(str(error), whole)
        return self.printer.operand(expr) if operand else self.printer.print(expr)

    def _refuse(self, message: str, whole: bool) -> NoReturn:
        """Raise DataFusion's fault in words about the user's table."""
        tip = hint(self._words)
        if unknown := re.search(r"No field named (.+?)\.(?:\s|$)", message, re.DOTALL):
            _refuse_unknown_name(unknown[1], self._schema, tip)
        line = message.split("caused by\n")[-1].splitlines()[0].replace(f"{_FRAME}.", "")
        line = re.sub(r"^((DataFusion|SQL|Execution) error: |Error during planning: )+", "", line)
        if parser := re.fullmatch(r'ParserError\("(.*)"\)', line):
            line = parser[1]
        line = re.sub(r".*Unsupported ast node in sqltorel: (\w+).*", r"\1 is not supported", line)
        line = re.sub(r".*binary operator: PGOverlap", "&& is no operator", line)
        if not whole:  # a place in a part of the text is none in the text
            line = re.sub(r" at Line: \d+, Column: \d+", "", line)
        raise WhereError(f"where does not parse: {line[:200]}{tip}") from None


def _require_lances_meaning(words: SqlText, front: _Front, printed: str, sql: str) -> None:
    """Refuse a filter that Lance refuses, and one that it reads otherwise than it was printed."""
    planner, form = front.planner, front.filled(printed, full=False)
    read(form)  # printing adds brackets

    def in_lance(token: Token) -> str | None:
        return f"({', '.join(sample(token))})" if token.kind == "list" else backticked(token)

    try:
        meant = planner.resolved(words.spelled(in_lance))
    except ValueError as error:
        raise explain_lance(str(error), words, planner, form) from None
    _refuse_ambiguous_quotes(words, planner, meant)
    try:
        found = planner.resolved(form)
        kind = planner.type_of(form)
        if form != sql:
            planner.resolved(sql)  # each value of a long list must suit
    except ValueError as error:
        raise explain_lance(str(error), words, planner, form) from None
    if found != meant and front.printer.renames:
        renamed = _renamed(words, front.printer.renames)
        meant = planner.resolved(words.spelled(lambda t: renamed.get(t.start) or in_lance(t)))
    if found != meant:
        raise WhereError(
            "where has no form that is the same for all spellings: LanceDB reads it as "
            f"{meant[:200]}, and {form[:200]} as {found[:200]}; write it otherwise"
        )
    if not pa.types.is_boolean(kind):
        raise WhereError(f"where must be true or false for each row, but it is of type {kind}")


def _renamed(words: SqlText, renames: dict[str, str]) -> dict[int, str]:
    """Return where functions are called by other names than they are printed with."""
    pairs = zip(words.tokens, words.tokens[1:], strict=False)
    return {
        t.start: renames[t.text] for t, after in pairs if t.text in renames and after.text == "("
    }


def _refuse_ambiguous_quotes(words: SqlText, planner: FilterPlanner, meant: str) -> None:
    """Refuse a name in double quotes that Lance takes for a string without complaint."""
    quoted = [t for t in words.tokens if t.kind == "name" and t.text[0] == '"']
    if not quoted:
        return
    listed = words.spelled(lambda t: f"({', '.join(sample(t))})" if t.kind == "list" else None)
    try:
        as_written = planner.resolved(listed)
    except ValueError:
        return  # as strings they make no sense to Lance either
    if as_written != meant:
        name = quoted[0].text[1:-1]
        error = WhereError(
            f"where holds {quoted[0].text}, which LanceDB takes for a string, not for a column; "
            f"write `{name}` for the column or '{name}' for the string"
        )
        error.span = quoted[0].start, quoted[0].end
        raise error


def _refuse_unknown_name(written: str, schema: pa.Schema, tip: str) -> NoReturn:
    name = written.replace('"', "")
    if len(name) > _MAX_GUESSED:
        name = name[:_MAX_GUESSED] + "..."
    guess = did_you_mean(name, schema.names)
    shown = ", ".join(schema.names[:_MAX_NAMES_SHOWN])
    more = len(schema.names) - _MAX_NAMES_SHOWN
    rest = f" and {more} more" if more > 0 else ""
    raise WhereError(
        f"where names an unknown column {name!r}.{guess} The columns are: {shown}{rest}{tip}"
    ) from None


def _refuse_column_of_that_name(sql: str, schema: pa.Schema) -> None:
    # Lance looks for a column called exactly like the whole expression before it parses it.
    if sql.lower() in {name.lower() for name in schema.names}:
        raise WhereError(f"where prints as {sql!r}, which is also a column's name; rewrite it")

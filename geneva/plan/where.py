"""Check a ``where`` and turn it into the one text that Lance evaluates as the user meant it.

DataFusion parses and types the expression; Lance is given text printed from DataFusion's tree,
never the user's own, because the two parsers disagree (`geneva.plan.sql_printer`).
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

from geneva.errors import WhereError
from geneva.plan.blame import blamed
from geneva.plan.sql_printer import PRINTER_VERSION, SqlPrinter
from geneva.storage.snapshot import without_blob_types

if TYPE_CHECKING:
    from datafusion import DataFrame, Expr

# Fixed, or names would change from run to run; not a name that a struct column could have,
# or `name.field` would be read as a column of the table.
_FRAME = "__geneva_where__"
_MAX_NAMES_SHOWN = 40


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
        A boolean SQL expression. Names may be bare (case is kept), in double quotes or in
        backticks; strings take single quotes.
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
        deterministic, or holds what Lance cannot evaluate; correct the text at its ``span``.
    """
    try:
        return _checked(text, without_blob_types(schema))
    except WhereError as error:
        error.span = blamed(str(error), text)
        raise


@lru_cache(maxsize=256)  # a notebook, or a watch, asks with the same filter again and again
def _checked(text: str, schema: pa.Schema) -> Where:
    if not text.strip():
        raise WhereError("where is empty; leave it out to compute every row that needs it")
    frame = _empty_frame(schema)
    printer = SqlPrinter(schema)
    try:
        expr = _parsed(text, frame, schema)
        sql = printer.print(expr)
        _require_boolean(expr, frame, schema)
    except RecursionError:
        raise WhereError("where is nested too deeply; simplify it") from None
    _refuse_column_of_that_name(sql, schema)
    digest = hashlib.sha256(f"{PRINTER_VERSION}\n{sql}".encode()).hexdigest()
    return Where(sql, tuple(sorted(printer.columns)), digest, text)


@lru_cache(maxsize=32)
def _empty_frame(schema: pa.Schema) -> DataFrame:
    # Imported here because it takes longer than everything else in `import geneva`.
    from datafusion import SessionConfig, SessionContext

    config = SessionConfig(
        {
            "datafusion.sql_parser.enable_ident_normalization": "false",
            # Lance has no string views, so casts must not make any.
            "datafusion.sql_parser.map_string_types_to_utf8view": "false",
        }
    )
    bare = pa.schema([pa.field(field.name, field.type) for field in schema])
    return SessionContext(config).from_arrow(bare.empty_table(), name=_FRAME)


def _parsed(text: str, frame: DataFrame, schema: pa.Schema) -> Expr:
    try:
        return frame.parse_sql_expr(text)
    except Exception as error:  # DataFusion's Python errors are bare Exceptions
        hint = " (a where is one expression, without ';')" if ";" in text else ""
        _explain(error, f"where does not parse{hint}", schema)


def _require_boolean(expr: Expr, frame: DataFrame, schema: pa.Schema) -> None:
    try:
        found = frame.select(expr.alias("m")).schema().field(0).type
        # Types below an IS NULL, and constants out of range, are only looked at by the optimizer.
        frame.select(expr.alias("m")).optimized_logical_plan()
    except Exception as error:  # as above
        _explain(error, "where makes no sense for this table", schema)
    if not pa.types.is_boolean(found):
        raise WhereError(f"where must be true or false for each row, but it is of type {found}")


def _explain(error: Exception, what: str, schema: pa.Schema) -> NoReturn:
    """Raise what DataFusion found in words about the user's table."""
    message = str(error)
    if unknown := re.search(r"No field named (.+?)\.(?:\s|$)", message):
        _refuse_unknown_name(unknown[1], schema)
    line = message.split("caused by\n")[-1].splitlines()[0].replace(f"{_FRAME}.", "")
    line = re.sub(r"^((DataFusion|SQL|Execution) error: |Error during planning: )+", "", line)
    if parser := re.fullmatch(r'ParserError\("(.*)"\)', line):
        line = parser[1]
    line = re.sub(r".*Unsupported ast node in sqltorel: (\w+).*", r"\1 is not supported", line)
    raise WhereError(f"{what}: {line[:200]}") from None


def _refuse_unknown_name(written: str, schema: pa.Schema) -> NoReturn:
    name = written.replace('"', "")
    by_lower = {column.lower(): column for column in schema.names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    guess = f"; did you mean {by_lower[close[0]]!r}?" if close else "."
    shown = ", ".join(schema.names[:_MAX_NAMES_SHOWN])
    more = len(schema.names) - _MAX_NAMES_SHOWN
    rest = f" and {more} more" if more > 0 else ""
    raise WhereError(
        f"where names an unknown column {name!r}{guess} The columns are: {shown}{rest}"
    ) from None


def _refuse_column_of_that_name(sql: str, schema: pa.Schema) -> None:
    # Lance looks for a column called exactly like the whole expression before it parses it.
    if sql.lower() in {name.lower() for name in schema.names}:
        raise WhereError(f"where prints as {sql!r}, which is also a column's name; rewrite it")

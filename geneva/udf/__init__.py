"""UDFs: their declaration, type, digest and pickle, and the call of one batch."""

from geneva.udf.call import Applied, Caller
from geneva.udf.convert import to_arrow
from geneva.udf.declare import UdfFactory, as_udf, for_rows, from_reference, udf, with_columns
from geneva.udf.definition import UDF
from geneva.udf.failures import BadResult, DeviceFull, RowError, RowFailed
from geneva.udf.families import holds_bytes, holds_lists, unstorable
from geneva.udf.files import FilePlaces
from geneva.udf.infer import arrow_type
from geneva.udf.retry import Fail, Retry, Skip
from geneva.udf.signature import Container, UdfKind

__all__ = [
    "UDF",
    "Applied",
    "BadResult",
    "Caller",
    "Container",
    "DeviceFull",
    "Fail",
    "FilePlaces",
    "Retry",
    "RowError",
    "RowFailed",
    "Skip",
    "UdfFactory",
    "UdfKind",
    "arrow_type",
    "as_udf",
    "for_rows",
    "from_reference",
    "holds_bytes",
    "holds_lists",
    "to_arrow",
    "udf",
    "unstorable",
    "with_columns",
]

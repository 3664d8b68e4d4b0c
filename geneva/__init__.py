"""Geneva: backfill computed columns of LanceDB tables, durably and exactly."""

from geneva.interrupts import interrupt_ends_starting_command, uninterrupted

interrupt_ends_starting_command()
with uninterrupted():  # a half imported NumPy or pyarrow is of no use to the rest of a session
    from geneva.connection import Connection, connect
    from geneva.errors import GenevaError, UdfTimeoutError
    from geneva.model.result import BackfillResult
    from geneva.model.windows import Windows
    from geneva.table import Table
    from geneva.udf import UDF, Fail, Retry, Skip, udf

__all__ = [
    "UDF",
    "BackfillResult",
    "Connection",
    "Fail",
    "GenevaError",
    "Retry",
    "Skip",
    "Table",
    "UdfTimeoutError",
    "Windows",
    "connect",
    "udf",
]

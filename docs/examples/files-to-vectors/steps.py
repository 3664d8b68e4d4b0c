"""The steps of the flow: a table of Python's sources, two UDFs, and a report."""

import sysconfig
import zlib
from pathlib import Path

import pyarrow as pa

import geneva
from geneva.flow import log

DIMENSIONS = 32


@geneva.udf
def words(source: str) -> int:
    """Count the words of a source."""
    return len(source.split())


@geneva.udf(data_type=pa.list_(pa.float32(), DIMENSIONS))
def vector(source: str) -> list[float]:
    """Hash each word into one of 32 places."""
    places = [0.0] * DIMENSIONS
    for word in source.split():
        places[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return places


def build(db: str, files: int) -> dict[str, int]:
    """Make the table once; a flow that is continued finds it there."""
    connection = geneva.connect(db)
    if "sources" in connection.list_tables().tables:
        return {"rows": len(connection.open_table("sources"))}
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    rows = [{"name": p.name, "source": p.read_text("utf-8", "replace")} for p in paths]
    table = connection.create_table("sources", pa.Table.from_pylist(rows[: len(rows) // 2]))
    table.add(pa.Table.from_pylist(rows[len(rows) // 2 :]))
    table.add_columns({"words": words, "vector": vector})
    return {"rows": len(rows)}


def report(db: str, mean: float) -> None:
    """Name the source that is written most like json's decoder."""
    table = geneva.connect(db).open_table("sources")
    [query] = table.search().where("name = 'this.py'").limit(1).to_list()
    nearest = table.search(query["vector"], vector_column_name="vector").limit(2).to_list()[1]
    Path("report.txt").write_text(
        f"{mean:.0f} words a file; this.py is nearest to {nearest['name']}\n"
    )
    log(metrics={"mean_words": mean}, artifacts={"report": "report.txt"})

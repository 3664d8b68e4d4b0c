"""udfs.image on real tables: pictures drawn with Pillow, in the formats that people have."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

import geneva
from tests.support.tables import assert_table_invariants, column, make_table
from udfs.image import Thumbnail, image_size


def drawn(width: int, height: int, format: str, mode: str = "RGB") -> bytes:
    """Return a picture with a red left and a blue right half."""
    picture = Image.new("RGB", (width, height), "red")
    ImageDraw.Draw(picture).rectangle((width // 2, 0, width, height), fill="blue")
    file = io.BytesIO()
    picture.convert(mode).save(file, format)
    return file.getvalue()


def opened(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


PICTURES = [
    drawn(640, 480, "PNG"),
    drawn(300, 900, "JPEG"),
    None,
    drawn(33, 21, "WEBP"),
    drawn(400, 100, "GIF", "P"),
    drawn(200, 200, "TIFF", "CMYK"),
    drawn(120, 260, "PNG", "RGBA"),
    drawn(90, 90, "PNG", "L"),
]


@pytest.fixture
def table(tmp_path: Path) -> geneva.Table:
    data = pa.table({"id": range(len(PICTURES)), "image": pa.array(PICTURES, pa.binary())})
    return make_table(tmp_path, data=data, fragments=3)


def test_size_that_is_not_the_pictures(table: geneva.Table):
    table.add_columns({("width", "height"): image_size, "size": image_size})
    table.backfill(["width", "size"], executor="local", concurrency=2)

    sizes = [None if p is None else opened(p).size for p in PICTURES]
    assert column(table, "width") == [s and s[0] for s in sizes]
    assert column(table, "height") == [s and s[1] for s in sizes]
    assert column(table, "size") == [s and {"width": s[0], "height": s[1]} for s in sizes]
    assert_table_invariants(table)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_thumbnail_that_does_not_fit_or_shows_something_else(table: geneva.Table, format: str):
    table.add_columns({"small": Thumbnail(max_size=64, format=format)})
    table.backfill("small", executor="local", concurrency=2)

    for picture, small in zip(PICTURES, column(table, "small"), strict=True):
        assert (small is None) == (picture is None)
        if picture is None:
            continue
        before, after = opened(picture), opened(small)
        assert after.format == format
        assert max(after.size) == min(64, max(before.size))
        ratio = before.width / before.height
        assert after.width == pytest.approx(after.height * ratio, abs=max(1.0, ratio))
        for x in (0.25, 0.75):
            want = before.convert("RGB").getpixel((int(before.width * x), before.height // 2))
            got = after.convert("RGB").getpixel((int(after.width * x), after.height // 2))
            assert all(abs(a - b) < 30 for a, b in zip(want, got, strict=True)), (want, got)
    assert_table_invariants(table)


def test_bytes_that_are_no_picture_and_stop_everything(tmp_path: Path):
    whole = drawn(64, 64, "PNG")
    images = [whole, b"no picture", whole[: len(whole) // 2], b"", whole]
    table = make_table(tmp_path, data=pa.table({"image": images}), fragments=1)
    table.add_columns({"small": Thumbnail(max_size=8), "size": image_size})
    result = table.backfill("small", executor="local", on_error="null")
    assert result.rows_failed == 3
    assert sorted(result.failures["row"].to_pylist()) == [1, 2, 3]
    assert [v is None for v in column(table, "small")] == [False, True, True, True, False]
    # The header of a truncated file is there, so its size is known.
    assert table.backfill("size", executor="local", on_error="null").rows_failed == 2
    assert_table_invariants(table)


def test_picture_that_the_camera_turned_lies_on_its_side():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: stored left is shown top
    file = io.BytesIO()
    opened(drawn(80, 40, "PNG")).save(file, "JPEG", exif=exif)
    small = opened(Thumbnail(max_size=40)(file.getvalue()))
    assert small.size == (20, 40)
    red, _, blue = small.convert("RGB").getpixel((10, 5))
    assert red > 200
    assert blue < 60


def test_transparent_part_that_turns_black_in_a_jpeg():
    file = io.BytesIO()
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(file, "PNG")
    small = opened(Thumbnail(format="JPEG")(file.getvalue()))
    assert min(small.getpixel((5, 5))) > 250


@pytest.mark.parametrize("wrong", [{"max_size": 0}, {"format": "BMP"}])
def test_parameter_that_makes_no_sense_is_taken(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Thumbnail(**wrong).instantiate()

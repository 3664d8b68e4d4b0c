"""UDFs of encoded images (PNG, JPEG, WebP and others that Pillow reads), as bytes in a column."""

from __future__ import annotations

import io
from typing import Literal

import pyarrow as pa

import geneva

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError(
        "udfs.image needs Pillow, which is not installed: pip install 'geneva-backfill[image]'"
    ) from error

_SIZE = pa.struct([pa.field("width", pa.int32()), pa.field("height", pa.int32())])
# Modes that a PNG holds as they are; the others (CMYK, YCbCr, floats) become RGB.
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


@geneva.udf(data_type=_SIZE)
def image_size(image: bytes | None) -> dict[str, int] | None:
    """Return an image's width and height in pixels, as it is stored; only its header is read.

    Parameters
    ----------
    image
        An encoded image.

    Returns
    -------
    dict
        ``width`` and ``height``: a struct column, or two columns with
        ``add_columns({("width", "height"): image_size})``. ``None`` for ``None``. A rotation that
        the camera noted (EXIF) is not applied.

    Raises
    ------
    PIL.UnidentifiedImageError
        The bytes are no image that Pillow reads.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (640, 480)).save(file, "PNG")
    >>> image_size(file.getvalue())
    {'width': 640, 'height': 480}
    """
    if image is None:
        return None
    with Image.open(io.BytesIO(image)) as opened:
        return {"width": opened.width, "height": opened.height}


@geneva.udf(data_type=pa.large_binary())
class Thumbnail:
    """Shrink images to fit a square, upright, as PNG or JPEG bytes.

    Parameters
    ----------
    max_size
        Longest side in pixels; a smaller image keeps its size.
    format
        ``"PNG"``, or ``"JPEG"`` (transparent parts become white).
    quality
        Of a JPEG, 1 to 95.

    Raises
    ------
    ValueError
        A parameter makes no sense.
    OSError
        At a row: the image is damaged, or is none.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (640, 480), "navy").save(file, "PNG")
    >>> small = Thumbnail(max_size=64)(file.getvalue())
    >>> Image.open(io.BytesIO(small)).size
    (64, 48)
    """

    def __init__(
        self, max_size: int = 256, format: Literal["PNG", "JPEG"] = "PNG", quality: int = 85
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is at least 1 pixel, not {max_size}")
        if format not in {"PNG", "JPEG"}:
            raise ValueError(f"format is 'PNG' or 'JPEG', not {format!r}")
        self._max_size, self._format, self._quality = max_size, format, quality

    def __call__(self, image: bytes | None) -> bytes | None:
        """Return the thumbnail of one image."""
        if image is None:
            return None
        with Image.open(io.BytesIO(image)) as opened:
            # A JPEG is decoded at about the wanted size, which is several times quicker.
            opened.draft(None, (self._max_size, self._max_size))
            upright = ImageOps.exif_transpose(opened)
        upright.thumbnail((self._max_size, self._max_size))
        # What the original carried along (EXIF, profiles) would outweigh a small picture.
        upright.info.clear()
        file = io.BytesIO()
        if self._format == "JPEG":
            _flat(upright).save(file, "JPEG", quality=self._quality)
        else:
            fits = upright.mode in _PNG_MODES
            (upright if fits else upright.convert("RGB")).save(file, "PNG")
        return file.getvalue()


def _flat(image: Image.Image) -> Image.Image:
    """Return an image without transparency, on white."""
    if "A" not in image.getbands() and image.mode != "P":
        return image if image.mode in {"L", "RGB"} else image.convert("RGB")
    with_alpha = image.convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return flat

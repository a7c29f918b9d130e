"""Frames into a file: MP4, or a GIF that is small enough to send. What fails half-way leaves nothing behind."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from experiments.storage import disk_errors

Image = NDArray[np.uint8]

SLOWEST, FASTEST = 5.0, 100.0
"""Frames a second of an MP4."""
GIF_RATE, GIF_SIDE, GIF_COLOURS = 20.0, 320, 128
"""Most frames a second, longest side in pixels and most colours of a GIF: a minute of it stays a few megabytes."""


class Film(Protocol):
    """Takes frames, one after the other."""

    def add(self, image: Image) -> None:
        """Append one frame ``[height, width, 3]``."""

    def close(self) -> None:
        """Finish the file."""

    def stop(self) -> None:
        """Leave off; the file is of no use."""


@contextmanager
def film(path: Path, rate: float) -> Iterator[Film]:
    """A film that becomes ``path`` when all went well; its ending decides the kind.

    Args:
        path: a file whose name ends in ``.mp4`` or ``.gif``; its folder is made.
        rate: frames a second at the speed of the environment.

    Raises:
        UserError: the disk refuses.
    """
    aside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.open("wb").close()  # ffmpeg's own words for a refusal are a page long
            made = KINDS[path.suffix](aside, rate)
        with _stopped_on_failure(made):
            yield made
        with disk_errors(path):
            made.close()
            os.replace(aside, path)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def _stopped_on_failure(made: Film) -> Iterator[None]:
    try:
        yield
    except BaseException:
        made.stop()
        raise


class Mp4:
    """H.264 by imageio and its ffmpeg. The same size as the frames, up to a pixel (the format wants even sides)."""

    def __init__(self, path: Path, rate: float) -> None:
        import imageio.v2 as imageio

        rate = min(max(rate, SLOWEST), FASTEST)
        self._writer: Any = imageio.get_writer(path, fps=rate, macro_block_size=2)

    def add(self, image: Image) -> None:
        self._writer.append_data(image)

    def close(self) -> None:
        self._writer.close()

    def stop(self) -> None:
        with suppress(OSError):  # ffmpeg may be gone already; what failed first is what is told
            self._writer.close()


class Gif:
    """A GIF of few colours, frames and pixels, at the environment's speed: frames that are left out lengthen others.

    A GIF counts in hundredths of a second, so the speed is right up to rounding.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._frames, self._seen = path, list[Any](), 0
        self._every = max(1, math.ceil(rate / GIF_RATE))
        self._milliseconds = 10 * max(2, round(100 * self._every / rate))

    def add(self, image: Image) -> None:
        if self._seen % self._every == 0:
            self._frames.append(_small(image))
        self._seen += 1

    def close(self) -> None:
        if self._frames:
            first, *rest = self._frames
            first.save(
                self._path, "GIF", save_all=True, append_images=rest, duration=self._milliseconds, loop=0, disposal=1
            )

    def stop(self) -> None:
        self._frames.clear()


def _small(image: Image) -> Any:
    """The frame as a pillow image within the bounds of a GIF."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(image)
    picture.thumbnail((GIF_SIDE, GIF_SIDE))
    return picture.quantize(GIF_COLOURS, dither=Pillow.Dither.NONE)


KINDS: Mapping[str, type[Mp4] | type[Gif]] = {".mp4": Mp4, ".gif": Gif}


def write_on(image: Image, text: str) -> Image:
    """The frame with ``text`` in its upper left corner, white on a dark strip."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.fromarray(image)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox((4, 3), text)
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=(20, 20, 20))
    draw.text((4, 3), text, fill=(255, 255, 255))
    return np.asarray(picture)

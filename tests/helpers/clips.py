"""Short videos with known frames, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from trainer.extract.pipeline.protocols import Sampling, Unusable
from trainer.extract.video.decode import sample

#: each picture is a grid of black and white blocks: the first row is always the same, the others are bits of a number
GRID = 4
MARK = (1, 0, 1, 1)
#: pixel formats; the first one that the encoder supports is used
PIXELS = {"gif": "gray", "mjpeg": "yuvj420p", "png": "rgb24", "ffv1": "yuv420p"}


def draw_number(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture (height, width, 3) that shows a number below 4096."""
    bits = np.array([*MARK, *(number >> np.arange(GRID * (GRID - 1)) & 1)], np.uint8).reshape(GRID, GRID)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    return np.repeat(bits[rows][:, columns, None] * np.uint8(235), 3, axis=2)


def read_number(frame: NDArray[np.uint8]) -> int:
    """The number in a frame (height, width, 3) of any size, from the middle of each block.

    Raises AssertionError if the first row is wrong: it is another picture, or not upright.
    """
    height, width = frame.shape[:2]
    middle = (2 * np.arange(GRID) + 1) / (2 * GRID)
    rows, columns = (middle * height).astype(int), (middle * width).astype(int)
    bits = frame[rows][:, columns].mean(axis=2).ravel() > 117
    assert tuple(bits[:GRID].astype(int)) == MARK, "not an upright number"
    return int((bits[GRID:] << np.arange(GRID * (GRID - 1))).sum())


def write_clip(
    path: Path | Any,
    pictures: Sequence[NDArray[np.uint8]],
    fps: float | Fraction = 25,
    codec: str = "libx264",
    gop: int = 12,
    bframes: int = 0,
    times: Sequence[float] | None = None,
    matrix: Sequence[int] | None = None,
    sound: float = 0.0,
    pixels: str | None = None,
    container: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    format: str | None = None,
) -> None:
    """Write pictures (height, width, 3), RGB, as a video, shown at times k / fps, or at `times` (seconds).

    matrix: the display matrix (9 integers, 16.16 fixed point); sound: seconds of a silent audio track;
    container, options: options of the container and of the encoder.
    """
    rate = Fraction(fps).limit_denominator(1001)
    step = Fraction(1, 1000) if times is not None else 1 / rate
    with av.open(path if not isinstance(path, Path) else str(path), "w", format=format, options=container or {}) as out:
        quick = {"preset": "ultrafast"} if codec in ("libx264", "libx265") else {}
        quick |= {"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else {}
        if codec == "libx265":
            quick["x265-params"] = f"log-level=none:keyint={gop}:bframes={bframes}"
        elif codec == "libx264":
            quick["sc_threshold"] = "0"
        stream: Any = out.add_stream(codec, rate=rate, options={**quick, **(options or {})})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels or PIXELS.get(codec, "yuv420p")
        stream.codec_context.time_base = step
        stream.gop_size = gop
        if codec in ("libx264", "mpeg4", "mpeg2video"):
            stream.max_b_frames = bframes
        if matrix is not None:
            stream.set_display_matrix(matrix)
        silence: Any = (
            out.add_stream("aac" if codec not in ("libvpx", "libvpx-vp9") else "libopus", 48000) if sound else None
        )
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = step
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if silence is not None:
            for index in range(round(sound * 48000 / 960)):
                quiet = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
                quiet.sample_rate, quiet.pts = 48000, index * 960
                out.mux(silence.encode(quiet))
            out.mux(silence.encode(None))


def number_clip(
    path: Path | Any, frames: int = 25, size: tuple[int, int] = (64, 48), first: int = 0, **how: Any
) -> None:
    """Write a clip (width, height = `size`) whose frame k shows the number first + k; `how` as for write_clip."""
    write_clip(path, [draw_number(first + index, *size) for index in range(frames)], **how)


def reason(source: Path | str, how: Sampling | None = None) -> str:
    """The reason why no frames can be sampled from a source. Raises AssertionError if they can."""
    try:
        sample(str(source), how or Sampling(timeout=20))
    except Unusable as unusable:
        return str(unusable)
    raise AssertionError(f"{source} is a video")

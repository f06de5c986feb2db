"""Decoding: which frames of a video are taken, how much is read for them, and what is refused."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.clips import draw_number, number_clip, read_number, write_clip
from tests.helpers.paths import ROOT
from trainer.extract.pipeline.protocols import Sampling
from trainer.extract.video.decode import sample

NTSC = Fraction(30000, 1001)
REAL = ROOT.parent / "shared/data/microlens-videos"


def shown_at(times: NDArray[np.float64], end: float, how: Sampling) -> NDArray[np.intp]:
    """The definition: of frames shown from `times` on, in a video that ends at `end`, those on display around its
    middle; a frame that begins 5 ms later counts as on display."""
    targets = end / 2 + (np.arange(how.frames) - (how.frames - 1) / 2) / how.fps
    return np.maximum(np.searchsorted(times, targets + 0.005, side="right") - 1, 0)


def decoded(path: Path) -> tuple[NDArray[np.float64], float, list[NDArray[np.uint8]]]:
    """Every frame of a file in a plain loop: times from the first one on, the duration (what an mp4 says, elsewhere up
    to the end of the last frame), and pixels."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames: list[Any] = list(container.decode(stream))
        unit = float(frames[0].time_base)
        times = np.array([frame.pts for frame in frames]) * unit
        end = times[-1] + frames[-1].duration * unit - times[0]
        if path.suffix == ".mp4":
            end = (stream.duration or 0) * unit
        return times - times[0], end, [frame.to_ndarray(format="rgb24") for frame in frames]


GRID = [Sampling(frames, fps) for frames in (1, 5, 8) for fps in (0.5, 1.0, 2.0)]
H264_OPEN = {"x264-params": "open-gop=1:b-pyramid=normal:ref=3"}
PIECES = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
CLIPS: list[tuple[str, dict[str, Any]]] = [
    ("mp4", {"frames": 250, "gop": 250, "bframes": 3}),
    ("mp4", {"frames": 900, "fps": 30, "gop": 30, "bframes": 2}),
    ("mp4", {"frames": 301, "fps": NTSC, "gop": 1}),
    ("mp4", {"frames": 120, "fps": 24, "codec": "libx265", "gop": 48, "bframes": 4}),
    ("mp4", {"frames": 600, "fps": 60, "gop": 250, "bframes": 3}),
    ("mp4", {"frames": 250, "gop": 50, "bframes": 4, "options": H264_OPEN}),
    ("mp4", {"frames": 250, "codec": "mpeg4", "bframes": 2, "sound": 14.0}),
    ("mp4", {"frames": 150, "bframes": 2, "container": PIECES}),
    ("mp4", {"frames": 1}),
    ("mp4", {"frames": 3, "fps": 30}),
    ("mov", {"frames": 100, "fps": 10}),
    ("mkv", {"frames": 301, "fps": NTSC, "gop": 60, "bframes": 2}),
    ("mkv", {"frames": 80, "fps": 10, "sound": 20.0}),
    ("mkv", {"frames": 1}),
    ("webm", {"frames": 96, "fps": 24, "codec": "libvpx-vp9", "gop": 50}),
    ("webm", {"frames": 96, "fps": 24, "codec": "libvpx", "sound": 9.0}),
    ("avi", {"frames": 240, "fps": 24, "codec": "mpeg4", "bframes": 2}),
    ("avi", {"frames": 60, "fps": 24, "codec": "mjpeg"}),
    ("ts", {"frames": 240, "fps": 24, "bframes": 2}),
    ("ts", {"frames": 250, "gop": 50, "bframes": 4, "options": H264_OPEN}),
    ("ts", {"frames": 1}),
    ("mpg", {"frames": 250, "codec": "mpeg2video", "bframes": 2}),
    ("flv", {"frames": 250, "gop": 50, "bframes": 2}),
    ("gif", {"frames": 60, "fps": 10, "codec": "gif"}),
]


@pytest.mark.parametrize(("ending", "how"), CLIPS, ids=lambda part: part if isinstance(part, str) else str(part))
def test_the_frames_on_display_are_taken(tmp_path: Path, ending: str, how: dict[str, Any]) -> None:
    """At a constant rate frame k is shown from k / fps on, so its drawn number gives its time."""
    clip = tmp_path / f"clip.{ending}"
    number_clip(clip, **how)
    times = np.arange(how["frames"]) / float(how.get("fps", 25))
    for sampling in GRID:
        frames, at = sample(str(clip), sampling)
        expected = shown_at(times, how["frames"] / float(how.get("fps", 25)), sampling)
        assert [read_number(frame) for frame in frames] == expected.tolist()
        np.testing.assert_allclose(at, times[expected], atol=0.002)  # Matroska and FLV count milliseconds


def test_a_constant_rate_gives_the_middle_frame_and_neighbours_at_the_rounded_rate(tmp_path: Path) -> None:
    """MicroLens's script: n // 2 and multiples of round(fps) beside it."""
    for frames in (300, 301):
        number_clip(tmp_path / "clip.mp4", frames=frames, fps=NTSC)
        taken, _ = sample(str(tmp_path / "clip.mp4"), Sampling())
        assert [read_number(frame) for frame in taken] == [frames // 2 + 30 * k for k in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("start", [0.0, 7.3])
@pytest.mark.parametrize("bframes", [0, 3])
def test_a_variable_rate_and_a_late_start(tmp_path: Path, ending: str, start: float, bframes: int) -> None:
    rng = np.random.default_rng(7)
    gaps = np.where(rng.random(150) < 0.1, 0.9, 0.02 + 0.06 * rng.random(150)).round(3)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    number_clip(tmp_path / f"clip.{ending}", frames=151, gop=30, bframes=bframes, times=(start + times).tolist())
    _, end, _ = decoded(tmp_path / f"clip.{ending}")
    for sampling in GRID:
        frames, at = sample(str(tmp_path / f"clip.{ending}"), sampling)
        expected = shown_at(times, end, sampling)
        assert [read_number(frame) for frame in frames] == expected.tolist()
        np.testing.assert_allclose(at, times[expected], atol=0.002)


class Pipe:
    """A file to which a program cannot seek back, so the video has no duration and no index."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def write(self, data: bytes) -> int:
        self.bytes += data
        return len(data)


@pytest.mark.parametrize(("format", "codec"), [("matroska", "libx264"), ("webm", "libvpx"), ("flv", "libx264")])
def test_a_clip_written_to_a_pipe(tmp_path: Path, format: str, codec: str) -> None:
    pipe = Pipe()
    number_clip(pipe, frames=100, gop=40, format=format, codec=codec)
    (tmp_path / "clip").write_bytes(pipe.bytes)
    for sampling in GRID:
        frames, _ = sample(str(tmp_path / "clip"), sampling)
        expected = shown_at(np.arange(100) / 25, 4.0, sampling)
        assert [read_number(frame) for frame in frames] == expected.tolist()


def test_an_edit_list_that_cuts_the_start_away(tmp_path: Path) -> None:
    """The first 1.5 s of 8 s are not shown, as in videos that were trimmed on a phone."""
    clip = tmp_path / "clip.mp4"
    number_clip(clip, frames=200, gop=50)
    data = bytearray(clip.read_bytes())
    entry = data.index(b"elst") + 12  # version and flags, count, then duration (in 1/1000 s) and start (in 1/12800 s)
    duration, begin = struct.unpack_from(">Ii", data, entry)
    assert (duration, begin) == (8000, 0)
    struct.pack_into(">Ii", data, entry, 6500, 19200)
    clip.write_bytes(data)
    times, end, pixels = decoded(clip)
    assert [read_number(frame) for frame in pixels][::162] == [38]  # 37.5, so the next frame is the first one shown
    for sampling in GRID:
        frames, at = sample(str(clip), sampling)
        expected = shown_at(times, end, sampling)
        assert [read_number(frame) for frame in frames] == [38 + k for k in expected]
        np.testing.assert_allclose(at, times[expected], atol=0.001)


@pytest.mark.skipif(not REAL.is_dir(), reason="the MicroLens clips are not here")
def test_real_clips_give_the_frames_of_a_full_decode() -> None:
    clip = REAL / "10034.mp4"
    times, end, pixels = decoded(clip)
    frames, at = sample(str(clip), Sampling())
    expected = shown_at(times, end, Sampling())
    np.testing.assert_allclose(at, times[expected])
    assert all(np.array_equal(frame, pixels[k]) for frame, k in zip(frames, expected, strict=True))


def bytes_read() -> int:
    """The bytes that this process has read from files, as counted by the kernel."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


@pytest.mark.parametrize(("ending", "fps", "part"), [("mp4", 1, 4), ("mkv", 1, 4), ("ts", 1, 4), ("mp4", 0.1, 3)])
def test_little_is_read_of_a_long_video(tmp_path: Path, ending: str, fps: float, part: int) -> None:
    """60 s, of which the frames taken span 4 s, and key frames are 2 s apart: 6 s of it, the start, the end. Where they
    span 40 s, what lies between them is left out as far as key frames allow, if the container tells of these."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (80, 80, 3), dtype=np.uint8) for _ in range(30)]
    clip = tmp_path / f"clip.{ending}"
    write_clip(clip, noise * 20, fps=10, gop=20)
    assert clip.stat().st_size > 2_000_000
    before = bytes_read()
    sample(str(clip), Sampling(fps=fps))
    assert bytes_read() - before < clip.stat().st_size / part


TURNS = [(a, b, c, d) for a, b, c, d in np.ndindex(3, 3, 3, 3) if abs((a - 1) * (d - 1) - (b - 1) * (c - 1)) == 1]
TURNS = [turn for turn in TURNS if sum(part != 1 for part in turn) == 2]


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(tmp_path: Path, turn: tuple[int, ...]) -> None:
    """ISO 14496-12: a stored point (x, y), y downwards, is shown at (a x + c y, b x + d y)."""
    a, b, c, d = (part - 1 for part in turn)
    stored = draw_number(0b110100101110, 64, 32)
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    write_clip(tmp_path / "clip.mp4", [stored] * 3, matrix=matrix)
    assert struct.pack(">9i", *matrix)[:20] in (tmp_path / "clip.mp4").read_bytes()
    x, y = np.meshgrid(np.arange(64), np.arange(32))
    right, down = a * x + c * y, b * x + d * y
    shown = np.zeros((np.ptp(down) + 1, np.ptp(right) + 1, 3), np.uint8)
    shown[down - down.min(), right - right.min()] = stored
    (frame,), _ = sample(str(tmp_path / "clip.mp4"), Sampling(frames=1))
    assert frame.shape == shown.shape
    assert np.abs(frame.astype(int) - shown).mean() < 6


@pytest.mark.parametrize(
    ("pixels", "luma", "tag", "full", "size"),
    [
        ("yuv420p", (0.2126, 0.0722), 1, False, (66, 50)),
        ("yuv420p", (0.299, 0.114), 6, False, (65, 49)),
        ("yuv420p", (0.2126, 0.0722), 1, True, (66, 50)),
        ("yuv422p10le", (0.2126, 0.0722), 1, False, (66, 50)),
        ("yuv444p", (0.299, 0.114), 6, True, (65, 49)),
        ("yuva420p", (0.299, 0.114), 6, False, (66, 50)),
    ],
)
def test_colours_are_converted(
    tmp_path: Path, pixels: str, luma: tuple[float, float], tag: int, full: bool, size: tuple[int, int]
) -> None:
    """Planes of one colour made from the formulas of BT.601 and BT.709 give that colour back."""
    colour = np.array([200, 90, 40]) / 255
    red, blue = luma
    y = red * colour[0] + (1 - red - blue) * colour[1] + blue * colour[2]
    cb, cr = (colour[2] - y) / (2 - 2 * blue), (colour[0] - y) / (2 - 2 * red)
    depth = 4 if "10" in pixels else 1
    planes = [255 * y, 128 + 255 * cb, 128 + 255 * cr] if full else [16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]
    with av.open(str(tmp_path / "clip.mkv"), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 2 if full else 1
        frame = av.VideoFrame(*size, pixels)
        for plane, value in zip(frame.planes, [*planes, 255], strict=False):
            dtype = np.uint16 if depth == 4 else np.uint8
            plane.update(np.full(plane.buffer_size // dtype().itemsize, round(value * depth), dtype).tobytes())
        frame.colorspace, frame.color_range, frame.pts = tag, 2 if full else 1, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    (taken,), _ = sample(str(tmp_path / "clip.mkv"), Sampling(frames=1))
    assert taken.shape == (size[1], size[0], 3)
    assert np.abs(taken.astype(int) - [200, 90, 40]).max() <= 3

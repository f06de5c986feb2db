"""Videos that cannot be used: each gives its reason, and damaged frames are not taken."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from models.errors import UserError
from tests.helpers.clips import draw_number, number_clip, read_number, reason, write_clip
from trainer.extract.pipeline.protocols import Sampling, Unusable
from trainer.extract.pipeline.units import FAILED, REASONS, Unit, unpack
from trainer.extract.video import video_file
from trainer.extract.video.decode import sample
from trainer.extract.video.job import VideoJob

NOTHING = np.zeros((32, 32, 3), np.uint8)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    assert reason(tmp_path / "missing.mp4") == "no such file"
    assert reason("file:///nowhere/missing.mp4") == "no such file"
    assert reason(tmp_path / "empty.mp4" / "below.mp4") == "no such file"
    assert reason("null\0character.mp4") == "no such file"
    assert reason(tmp_path / ("long" * 99)) == "cannot be read: File name too long"
    assert reason(tmp_path) == "a folder, not a file"
    assert reason(tmp_path / "pipe.mp4") == "not a regular file"
    assert reason("/dev/zero") == "not a regular file"
    assert reason(tmp_path / "empty.mp4") == "empty file"
    with pytest.raises(UserError, match="only file, http"):  # wrong for every item, so it is not a reason for this one
        sample("ftp://host/clip.mp4", Sampling())


def with_cover(path: Path, picture: Path) -> None:
    """Put a picture before an mp3 (ID3v2.3, frame APIC)."""
    body = b"\0image/png\0\3\0" + picture.read_bytes()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + frame + path.read_bytes())


def test_what_is_no_video(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("The dog ate the video.\n" * 99)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    assert reason(tmp_path / "text.mp4").startswith("not a video: ")
    assert reason(tmp_path / "noise.mp4").startswith("not a video: ")
    for name, codec in (("sound.m4a", "aac"), ("sound.mp3", "libmp3lame"), ("sound.mkv", "aac")):
        with av.open(str(tmp_path / name), "w") as out:
            stream: Any = out.add_stream(codec, 44100)
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
            quiet.sample_rate = 44100
            out.mux([*stream.encode(quiet), *stream.encode(None)])
        assert reason(tmp_path / name) == "no video stream"
    write_clip(tmp_path / "cover.png", [NOTHING], codec="png", format="image2", container={"update": "1"})
    with_cover(tmp_path / "sound.mp3", tmp_path / "cover.png")
    with av.open(str(tmp_path / "sound.mp3")) as container:
        assert [stream.type for stream in container.streams] == ["audio", "video"]
    assert reason(tmp_path / "sound.mp3") == "no video stream"
    assert capfd.readouterr().err == ""


def test_what_is_too_much(tmp_path: Path, clip: Path) -> None:
    wide = np.zeros((16, 16400, 3), np.uint8)
    write_clip(tmp_path / "wide.mkv", [wide], codec="mjpeg")
    assert reason(tmp_path / "wide.mkv") == "frames too large: 16400 x 16"
    assert reason(clip, Sampling(timeout=1e-9)) == "took longer than 1e-09 s"


@pytest.mark.parametrize(("flags", "part"), [("faststart", 0.5), ("faststart", 0.2), ("", 0.9)])
def test_a_cut_mp4(tmp_path: Path, flags: str, part: float, capfd: pytest.CaptureFixture[str]) -> None:
    """With the table at the start we know what is missing; if the table was at the end, nothing can be read."""
    number_clip(tmp_path / "clip.mp4", frames=250, gop=25, container={"movflags": flags} if flags else None)
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: int(len(data) * part)])
    said = reason(tmp_path / "clip.mp4")
    if flags:
        assert re.fullmatch(r"truncated: no frame at 7\.0 s of 10\.0 s|no frame can be decoded", said)
    else:
        assert said.startswith("not a video: ")
    assert capfd.readouterr().err == ""


def test_a_cut_mp4_whose_middle_is_there(tmp_path: Path) -> None:
    number_clip(tmp_path / "clip.mp4", frames=250, gop=25, container={"movflags": "faststart"})
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: int(len(data) * 0.85)])
    frames, _ = sample(str(tmp_path / "clip.mp4"), Sampling())
    assert [read_number(frame) for frame in frames] == [75, 100, 125, 150, 175]


@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_a_cut_stream_is_as_long_as_what_is_there(tmp_path: Path, ending: str) -> None:
    number_clip(tmp_path / f"clip.{ending}", frames=250, gop=25)
    data = (tmp_path / f"clip.{ending}").read_bytes()
    (tmp_path / f"clip.{ending}").write_bytes(data[: len(data) // 2])
    frames, times = sample(str(tmp_path / f"clip.{ending}"), Sampling())
    numbers = [read_number(frame) for frame in frames]
    np.testing.assert_allclose(times, np.array(numbers) / 25, atol=0.002)
    assert np.diff(numbers).tolist() == [25] * 4
    assert 45 < numbers[2] < 75


def seconds(packet: av.Packet[Any]) -> float:
    return float((packet.pts or 0) * packet.time_base)


def marked(path: Path) -> Iterator[float]:
    """Times of the frames that FFmpeg reports as damaged, by a plain loop over all frames."""
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames = []
                yield seconds(packet)
            yield from (frame.time for frame in frames if frame.is_corrupt)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_damaged_frames_and_those_that_lean_on_them_are_not_taken(tmp_path: Path, codec: str) -> None:
    whole, broken = tmp_path / "whole.mp4", tmp_path / "broken.mp4"
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
    write_clip(whole, [np.roll(texture, k, 1) + draw_number(k, 64, 48) // 2 for k in range(100)], codec=codec, gop=25)
    with av.open(str(whole)) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
    keys = [seconds(packet) for packet in packets if packet.is_keyframe] + [9.0]
    targets = np.arange(1.0, 3.5, 0.5)
    ends = Counter[str]()
    for packet in packets[21:80:3]:
        data = bytearray(whole.read_bytes())
        data[packet.pos + 8 : packet.pos + packet.size] = rng.bytes(packet.size - 8)
        broken.write_bytes(data)
        try:
            _, times = sample(str(broken), Sampling(fps=2))
        except Unusable as error:
            ends[re.sub(r"[123]\.[05] s of 4", "T s of 4", str(error))] += 1
            continue
        spans = [(mark, min(key for key in keys if key > mark)) for mark in marked(broken)]
        assert not any(first <= at < last for first, last in spans for at in times)
        assert np.abs(times - targets).max() < 0.25 + 0.05  # half a step, and a frame
        ends["stood in" if np.abs(times - targets).max() > 0.05 else "as asked"] += 1
    assert set(ends) <= {"damaged: no frame at T s of 4.0 s", "stood in", "as asked"}
    assert ends["damaged: no frame at T s of 4.0 s"]
    assert ends["as asked"]


@pytest.mark.parametrize("kind", ["concat", "hls"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file named in the playlist is a pipe. A thread opens it for writing, and so notices any reader."""
    monkeypatch.chdir(tmp_path)  # FFmpeg resolves names from here if it does not open the playlist by name
    os.mkfifo(tmp_path / "secret.ts")
    text = {
        "concat": "ffconcat version 1.0\nfile secret.ts\n",
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
    }[kind]
    (tmp_path / "video.mp4").write_text(text)
    (tmp_path / "video.m3u8").write_text(text)

    def read_by(call: Any) -> bool:
        was_read = threading.Event()

        def offer() -> None:
            with (tmp_path / "secret.ts").open("wb"):
                was_read.set()

        thread = threading.Thread(target=offer)
        thread.start()
        call()
        heard = was_read.wait(0.2)
        os.close(os.open(tmp_path / "secret.ts", os.O_RDONLY | os.O_NONBLOCK))  # lets the thread end
        thread.join()
        return heard

    def trusting() -> None:
        with (tmp_path / "video.mp4").open("rb") as file, contextlib.suppress(av.FFmpegError):
            av.open(file if kind == "concat" else str(tmp_path / "video.m3u8"), "r")

    assert read_by(trusting)  # the attack is real: FFmpeg by itself opens the file
    for name in ("video.mp4", "video.m3u8"):
        assert not read_by(lambda name=name: reason(tmp_path / name))
        assert reason(tmp_path / name).startswith("not a video: ")


def test_a_bug_is_not_a_reason(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while FFmpeg reads is raised unchanged."""

    def broken(*_: Any) -> bytes:
        raise TypeError("a bug")

    monkeypatch.setattr(video_file.Deadline, "check", broken)
    with pytest.raises(TypeError, match="a bug"):
        sample(str(clip), Sampling())


def test_frames_of_extreme_shape(tmp_path: Path) -> None:
    """A processor that resizes the shorter side would make pictures of 224 x 8960."""
    write_clip(tmp_path / "clip.mp4", [np.zeros((16, 640, 3), np.uint8)] * 10)
    loaded = unpack(VideoJob("efficientnet-lite0").load(Unit((7,), (str(tmp_path / "clip.mp4"),))))
    assert (loaded[FAILED].tolist(), loaded[REASONS].tolist()) == ([7], ["frames too narrow: 640 x 16"])

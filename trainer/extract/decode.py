"""Frames of a video at evenly spaced times around its middle, without decoding the rest of it.

This is the only place that imports av (PyAV 18: earlier versions lack `Stream.discard`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import av
import numpy as np
from numpy.typing import NDArray

from trainer.extract.contract import Unusable
from trainer.extract.source import Deadline, Source, open_source

#: containers that hold what they show; not playlists and patterns (hls, concat, dash, image2, sdp), which make FFmpeg
#: open other files. Sound files are here to be told apart from files that are no media at all
CONTAINERS = "mov,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif,ivf,nut,mxf,mp3,aac,wav,flac"
MAX_SIDE = 16384
MAX_PIXELS = 1 << 27
#: a frame that begins this soon after a time, in seconds, counts as shown at it: Matroska rounds times to milliseconds,
#: and 29.97 frames per second are 30 to those who ask for a frame each second
TOLERANCE = 0.005
#: codecs of which the decoder tells frames that no other frame refers to, and can leave them out
SKIPPING = ("h264", "hevc")
#: FFmpeg's stamp of what has none
NEVER = -(1 << 63)

_Packet: TypeAlias = "av.Packet[av.VideoStream]"


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken of a video, and what it may cost (MealRec 5.1.3: 5 frames, 1 per second)."""

    frames: int = 5
    fps: float = 1.0  # frames taken per second
    timeout: float = 60.0  # seconds for one video
    max_bytes: int = 2 << 30  # copied at most of a remote file that cannot be read in parts


def sample(source: str, how: Sampling) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """`how.frames` frames (height, width, 3), RGB, upright, and the time of each in seconds since the video's start.

    Frame k is the one that a player shows at half of the duration + (k - (K - 1) / 2) / fps, the first or the last one
    where that is outside the video (at a constant rate, frame n // 2 and those round(fps) apart, which MicroLens's
    script takes). Where that frame is damaged or missing, the last intact one is taken if it was shown less than half
    a step before. Pixels are as stored: a sample aspect ratio is not applied.

    Raises Unusable: the file cannot be read, is no video, is damaged at these frames, or takes too long.
    """
    deadline = Deadline(how.timeout)
    with open_source(source, deadline, how.max_bytes) as opened:
        try:
            video = _Video(opened)
            times = video.middle + (np.arange(how.frames) - (how.frames - 1) / 2) / how.fps
            taken = video.take(np.clip(times, 0.0, video.seconds), patience=0.5 / how.fps)
            frames = {id(frame): _upright(frame) for frame in taken}
        except av.FFmpegError as error:
            opened.check()  # what FFmpeg says of a file that could not be read on is not the reason
            raise Unusable(f"cannot be decoded: {error.strerror}") from error
        opened.check()
    return [frames[id(frame)] for frame in taken], np.array([video.time(frame) for frame in taken])


@dataclass
class _Damage:
    """Spans of display time, in units of the stream, whose frames are not to be trusted: up to the next key frame."""

    spans: list[tuple[int, float]] = field(default_factory=list)

    def begin(self, stamp: int) -> None:
        self.spans.append((stamp, float("inf")))

    def end(self, stamp: int) -> None:
        self.spans = [(first, min(last, stamp)) for first, last in self.spans]

    def holds(self, stamp: int) -> bool:
        return any(first <= stamp < last for first, last in self.spans)


class _Video:
    """The video stream of an open file: its length, and its frames from any time on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._open()
        context = self.stream.codec_context
        # HEVC's "non-reference" frames are referred to in higher temporal layers; byte 21 of hvcC counts the layers
        header = context.extradata or b""
        layered = context.name == "hevc" and not (len(header) > 22 and header[0] == 1 and header[21] >> 3 & 7 == 1)
        self._skips = context.name in SKIPPING and not layered
        self._unit = float(self.stream.time_base or 0)
        self._reordering = self._position = 0
        self._start, end = self._bounds()
        self.seconds = (end - self._start) * self._unit
        self.middle = self.seconds / 2

    def _open(self) -> None:
        self._source.seek(0)
        options = {
            "format_whitelist": CONTAINERS,
            "protocol_whitelist": "none",
            "max_pixels": str(MAX_PIXELS),
        }
        try:
            self.container = av.open(self._source, "r", options=options, metadata_errors="replace")
        except av.FFmpegError as error:
            self._source.check()
            refused = isinstance(error, av.error.ArgumentError)
            raise Unusable(f"not a video: {'a format that is not read' if refused else error.strerror}") from error
        self._source.check()
        pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        videos = [stream for stream in self.container.streams.video if not stream.disposition & pictures]
        if not videos:
            raise Unusable("no video stream")
        self.stream = videos[0]
        context = self.stream.codec_context
        if context is None:
            raise Unusable("no decoder for its video stream")
        if max(context.width, context.height) > MAX_SIDE or context.width * context.height > MAX_PIXELS:
            raise Unusable(f"frames too large: {context.width} x {context.height}")
        context.thread_count = 1  # as many videos are decoded at once as there are CPUs
        context.options = {"max_pixels": str(MAX_PIXELS)}
        for stream in self.container.streams:
            if stream.index != self.stream.index:
                stream.discard = av.stream.Discard.all

    def _bounds(self) -> tuple[int, int]:
        """Display time of the first frame, and the end of the last one."""
        stream, container = self.stream, self.container
        first: int | None = None
        for packet in self._packets_from_start():  # a container's word for its start may be that of the sound
            if not packet.is_discard:
                first = _stamp(packet) if first is None else min(first, _stamp(packet))
            if first is not None and (packet.dts is None or packet.dts >= first):
                break
        if first is None:
            raise Unusable("no frame can be decoded")
        if stream.duration and stream.frames and "mp4" in container.format.name:
            return first, first + stream.duration
        # only the table of an mp4 is exact; elsewhere a duration is rounded, estimated, that of the sound, or missing
        ends: list[int] = []
        if container.duration:
            near = first + (container.duration / av.time_base - 1) / self._unit
            ends = [_stamp(packet) + (packet.duration or 0) for packet in self._seek(max(near, first))]
        if not ends:
            self._open()
            ends = [_stamp(packet) + (packet.duration or 0) for packet in self._packets()]
        return first, max(ends)

    def _packets(self) -> Iterator[_Packet]:
        try:
            for packet in self.container.demux(self.stream):
                self._source.check()
                if packet.size and _stamp(packet) != NEVER:
                    yield packet
        except av.FFmpegError:
            pass  # as the end: what is missing is seen by those who miss it
        self._source.check()

    def _packets_from_start(self) -> Iterator[_Packet]:
        """Packets of a container that has just been opened, from the first key frame on."""
        return itertools.dropwhile(lambda packet: not packet.is_keyframe, self._packets())

    def _seek(self, stamp: float) -> Iterator[_Packet]:
        """Packets from about a time on; none where the container cannot be searched."""
        if self.container.format.name == "mpeg":
            return iter(())  # has times for few of its frames, and FFmpeg's guesses after a search are wrong
        try:
            self.container.seek(int(stamp), stream=self.stream)
        except av.FFmpegError:
            return iter(())
        return self._packets()

    def _from_key(self, limit: float) -> Iterator[_Packet]:
        """Packets from a key frame on that is shown at `limit` or before; from the first one where there is none."""
        at, step = limit - self._reordering, 1.0 / self._unit
        while True:
            packets = self._seek(max(at, self._start))
            key = next((packet for packet in packets if packet.is_keyframe), None)
            if key is not None and _stamp(key) <= limit:
                self._reordering = max(0, _stamp(key) - (_stamp(key) if key.dts is None else key.dts))
                return itertools.chain([key], packets)
            if at <= self._start:
                self._open()
                return self._packets_from_start()
            at -= step  # containers search by decoding time, or by position
            step *= 2

    def take(self, times: NDArray[np.float64], patience: float) -> list[av.VideoFrame]:
        """The frames shown at rising times in seconds; a frame stands in for missing ones for `patience` seconds."""
        waiting = deque(self._start + (time + TOLERANCE) / self._unit for time in times.tolist())
        taken: list[av.VideoFrame] = []
        while waiting:
            self._take_run(waiting, taken, patience / self._unit)
        return taken

    def _take_run(self, waiting: deque[float], taken: list[av.VideoFrame], patience: float) -> None:
        """Take frames in one pass forward, until all are taken or the next is better reached from a later key frame."""
        shown: av.VideoFrame | None = None
        gone: float = self._start  # when `shown` was followed by what cannot be shown
        before = len(taken)
        for frame, intact in self._frames(waiting):
            stamp = _stamp(frame)
            while waiting and stamp > waiting[0]:
                if shown is None and intact and stamp - waiting[0] < patience:
                    shown, gone = frame, stamp  # nothing comes before the first frame
                if shown is None or waiting[0] - gone > patience:
                    raise Unusable(f"damaged: no intact frame at {self._at(waiting[0])}")
                taken.append(shown)
                waiting.popleft()
            if not waiting or (len(taken) > before and self._key_ahead(waiting[0])):
                return
            if intact:
                shown, gone = frame, float("inf")
            else:
                gone = min(gone, stamp)
        if shown is None:
            raise Unusable("no frame can be decoded")
        gone = min(gone, _stamp(shown) + shown.duration)
        if waiting[-1] - gone > patience:
            raise Unusable(f"truncated: no frame at {self._at(waiting[-1])}")
        taken.extend(shown for _ in waiting)
        waiting.clear()

    def _frames(self, waiting: deque[float]) -> Iterator[tuple[av.VideoFrame, bool]]:
        """Frames as they are shown, from the last key frame before waiting[0] on, and whether each is intact."""
        damage = _Damage()
        key: int | None = None
        sure = (
            NEVER  # a frame at or before waiting[0] that is decoded for certain: what is shown before it is not taken
        )
        packets = self._from_key(waiting[0])
        context = self.stream.codec_context
        for packet in itertools.chain(packets, [None]):
            if packet is not None:
                stamp = _stamp(packet)
                key = stamp if key is None else key
                self._position = packet.dts if packet.dts is not None else stamp
                if packet.is_corrupt:
                    damage.begin(stamp)
                elif packet.is_keyframe:
                    damage.end(stamp)
                context.skip_frame = "NONREF" if self._skips and stamp < sure else "DEFAULT"
                if stamp <= waiting[0] and not packet.is_discard:
                    sure = max(sure, stamp)
            try:
                frames = context.decode(packet)
            except av.FFmpegError:
                damage.begin(stamp)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damage.begin(_stamp(frame))
                if key is not None and _stamp(frame) >= key:  # earlier ones lean on what was not decoded
                    yield frame, not damage.holds(_stamp(frame))

    def _key_ahead(self, limit: float) -> bool:
        """Whether the container knows of a key frame after the current position from which `limit` can be reached."""
        entries = self.stream.index_entries
        found = entries.search_timestamp(int(limit - self._reordering))
        return found >= 0 and entries[found].timestamp > self._position

    def _at(self, limit: float) -> str:
        return f"{(limit - self._start) * self._unit - TOLERANCE:.1f} s of {self.seconds:.1f} s"

    def time(self, frame: av.VideoFrame) -> float:
        """Seconds since the start of the video."""
        return (_stamp(frame) - self._start) * self._unit


def _stamp(item: _Packet | av.VideoFrame) -> int:
    """When it is shown, in units of the stream."""
    return item.pts if item.pts is not None else item.dts if item.dts is not None else NEVER


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """RGB pixels (height, width, 3), turned and mirrored in quarter turns as the display matrix of the frame says."""
    if max(frame.width, frame.height) > MAX_SIDE:  # a stream can change its size
        raise Unusable(f"frames too large: {frame.width} x {frame.height}")
    pixels = cast("NDArray[np.uint8]", frame.to_ndarray(format="rgb24", threads=1))
    matrix = cast("Mapping[str, Any]", frame.side_data).get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # a pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

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

from trainer.extract.pipeline.protocols import Sampling, Unusable
from trainer.extract.video.video_file import Deadline, VideoFile, open_video_file

#: formats that hold the pictures themselves. Playlists and patterns (hls, concat, dash, image2, sdp) are left out: they
#: make FFmpeg open other files. Sound formats are listed so that the reason is "no video stream", not "not a video"
CONTAINERS = "mov,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif,ivf,nut,mxf,mp3,aac,wav,flac"
MAX_SIDE = 16384
MAX_PIXELS = 1 << 27
#: a frame that begins at most this many seconds after a time counts as shown at that time: Matroska rounds times to
#: milliseconds, and at 29.97 frames per second the 30th frame begins slightly after each full second
TOLERANCE = 0.005
#: codecs whose decoder can skip the frames that no other frame refers to
SKIPPING = ("h264", "hevc")
#: the display time that FFmpeg gives a packet or frame without one (AV_NOPTS_VALUE)
NO_TIME = -(1 << 63)

_Packet: TypeAlias = "av.Packet[av.VideoStream]"


def sample(source: str, how: Sampling) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """`how.frames` frames (height, width, 3), RGB, upright, and the time of each in seconds since the video's start.

    Frame k is the one that a player shows at half of the duration + (k - (K - 1) / 2) / fps, the first or the last one
    where that is outside the video (at a constant rate, frame n // 2 and those round(fps) apart, which MicroLens's
    script takes). A frame that FFmpeg finds damaged, and those after it up to the next key frame, are not taken: an
    intact one less than half a step away stands in. Pixels are as stored: a sample aspect ratio is not applied.

    Raises Unusable: the file cannot be read, is no video, is damaged at these frames, or takes too long.
    """
    deadline = Deadline(how.timeout)
    with open_video_file(source, deadline, how.max_bytes) as opened:
        try:
            video = _Video(opened)
            times = video.middle + (np.arange(how.frames) - (how.frames - 1) / 2) / how.fps
            taken = video.take(np.clip(times, 0.0, video.seconds), tolerance=0.5 / how.fps)
            frames = {id(frame): _upright(frame) for frame in taken}
        except av.FFmpegError as error:
            opened.check()  # if reading the file failed, that is the reason, and FFmpeg's error only follows from it
            raise Unusable(f"cannot be decoded: {error.strerror}") from error
        opened.check()
    return [frames[id(frame)] for frame in taken], np.array([video.time(frame) for frame in taken])


@dataclass
class _Pass:
    """Packets and damage found in one forward pass, by display time in units of the stream."""

    sent: list[int] = field(default_factory=list)
    damaged: list[tuple[int, float]] = field(default_factory=list)  # from a damaged frame up to the next key frame

    def damage(self, stamp: int) -> None:
        self.damaged.append((stamp, float("inf")))

    def repair(self, stamp: int) -> None:
        self.damaged = [(first, min(last, stamp)) for first, last in self.damaged]

    def trusts(self, stamp: int) -> bool:
        return not any(first <= stamp < last for first, last in self.damaged)

    def gone(self, frame: av.VideoFrame) -> float:
        """Display time at which the next frame should replace this one; decoders may drop damaged frames silently."""
        return min((stamp for stamp in self.sent if stamp > _stamp(frame)), default=float("inf"))


class _Video:
    """The video stream of an open file: its length, and its frames from any time on."""

    def __init__(self, file: VideoFile) -> None:
        self._file = file
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
        self._file.seek(0)
        limits = {"max_pixels": str(MAX_PIXELS)}
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none", **limits}
        try:
            self.container = av.open(self._file, "r", options=options, metadata_errors="replace")
        except av.FFmpegError as error:
            self._file.check()
            refused = isinstance(error, av.error.ArgumentError)
            raise Unusable(f"not a video: {'a format that is not read' if refused else error.strerror}") from error
        self._file.check()
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
        context.options = limits
        for stream in self.container.streams:
            if stream.index != self.stream.index:
                stream.discard = av.stream.Discard.all

    def _bounds(self) -> tuple[int, int]:
        """Display time of the first frame, and the end of the last one."""
        stream, container = self.stream, self.container
        first: int | None = None
        for packet in self._packets_from_start():  # the start time in the container may be that of the sound
            if not packet.is_discard:
                first = _stamp(packet) if first is None else min(first, _stamp(packet))
            if first is not None and (packet.dts is None or packet.dts >= first):
                break
        if first is None:
            raise Unusable("no frame can be decoded")
        if stream.duration and stream.frames and "mp4" in container.format.name:
            return first, first + stream.duration
        # only an mp4 has an exact duration; in others it is rounded, estimated, that of the sound, or missing
        ends: list[int] = []
        if container.duration:
            near = first + (container.duration / av.time_base - 1) / self._unit
            ends = [_stamp(packet) + (packet.duration or 0) for packet in self._seek(max(near, first))]
        if not ends:
            self._open()
            ends = [_stamp(packet) + (packet.duration or 0) for packet in self._packets()]
        return first, max(ends)

    def _packets(self) -> Iterator[_Packet]:
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    self._file.check()
                    if packet.size and _stamp(packet) != NO_TIME:
                        yield packet
            except IndexError:
                self._file.check()
                continue  # PyAV raises it at the end of a file in which a new stream appeared midway
            except av.FFmpegError:
                pass  # treated as the end of the file; the caller notices which frames are missing
            return self._file.check()

    def _packets_from_start(self) -> Iterator[_Packet]:
        """Packets of a container that has just been opened, from the first key frame on."""
        return itertools.dropwhile(lambda packet: not packet.is_keyframe, self._packets())

    def _seek(self, stamp: float) -> Iterator[_Packet]:
        """Packets from about a time on; none where the container cannot be searched."""
        if self.container.format.name == "mpeg":
            return iter(())  # few of its frames have times, and FFmpeg guesses wrong ones after a seek
        try:
            self.container.seek(int(stamp), stream=self.stream)
        except (av.FFmpegError, OverflowError):  # a damaged file can claim an endless duration
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
            at -= step  # containers seek by decoding time or by position, so the first try may land too late
            step *= 2

    def take(self, times: NDArray[np.float64], tolerance: float) -> list[av.VideoFrame]:
        """The frames shown at rising times in seconds; a frame stands in for missing ones for `tolerance` seconds."""
        waiting = deque(self._start + (time + TOLERANCE) / self._unit for time in times.tolist())
        taken: list[av.VideoFrame] = []
        while waiting:
            self._take_run(waiting, taken, tolerance / self._unit)
        return taken

    def _take_run(self, waiting: deque[float], taken: list[av.VideoFrame], tolerance: float) -> None:
        """Take frames in one pass forward, until all are taken or the next is better reached from a later key frame."""
        met = _Pass()
        shown: av.VideoFrame | None = None
        before = len(taken)
        for frame in self._frames(waiting, met):
            stamp = _stamp(frame)
            while waiting and stamp > waiting[0]:
                if shown is None and stamp - waiting[0] < tolerance:
                    shown = frame  # nothing comes before the first frame
                if shown is None or waiting[0] - met.gone(shown) > tolerance:
                    raise Unusable(f"damaged: no frame at {self._at(waiting[0])}")
                taken.append(shown)
                waiting.popleft()
            if not waiting or (len(taken) > before and self._key_ahead(waiting[0])):
                return
            shown = frame
        if shown is None:
            raise Unusable(f"damaged: no frame at {self._at(waiting[0])}" if taken else "no frame can be decoded")
        if waiting[-1] - min(met.gone(shown), _stamp(shown) + shown.duration) > tolerance:
            trouble = "truncated" if waiting[-1] - self._position > tolerance else "damaged"
            raise Unusable(f"{trouble}: no frame at {self._at(waiting[-1])}")
        taken.extend(shown for _ in waiting)
        waiting.clear()

    def _frames(self, waiting: deque[float], met: _Pass) -> Iterator[av.VideoFrame]:
        """Intact frames as they are shown, from the last key frame before waiting[0] on."""
        key: int | None = None
        # latest frame at or before waiting[0] that is certainly decoded: frames shown before it are not needed
        sure = NO_TIME
        packets = self._from_key(waiting[0])
        context = self.stream.codec_context
        for packet in itertools.chain(packets, [None]):
            if packet is not None:
                stamp = _stamp(packet)
                key = stamp if key is None else key
                self._position = packet.dts if packet.dts is not None else stamp
                if packet.is_corrupt:
                    met.damage(stamp)
                elif packet.is_keyframe:
                    met.repair(stamp)
                context.skip_frame = "NONREF" if self._skips and stamp < sure else "DEFAULT"
                if not packet.is_discard:
                    met.sent.append(stamp)
                    sure = max(sure, stamp) if stamp <= waiting[0] else sure
            try:
                frames = context.decode(packet)
            except av.FFmpegError:
                met.damage(stamp)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    met.damage(_stamp(frame))
                # frames shown before the key frame refer to frames that were not decoded
                if key is not None and _stamp(frame) >= key and met.trusts(_stamp(frame)):
                    yield frame

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
    """Display time in units of the stream, NO_TIME where it has none."""
    return item.pts if item.pts is not None else item.dts if item.dts is not None else NO_TIME


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

"""Video files in and out, and which frames make a clip. The only module that touches PyAV."""

import os
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np


class VideoError(Exception):
    """A file that cannot be used as a video. The message starts with the path, then says what is wrong."""


@dataclass(frozen=True)
class Info:
    """What a video is, measured from its packets and first picture, not read from its header."""

    frames: int
    fps: float
    width: int  # as displayed: rotation applied
    height: int
    duration: float  # seconds
    codec: str
    rotation: int  # degrees counter-clockwise already applied to decoded frames: 0, 90, 180 or 270


@dataclass(frozen=True)
class Index:
    """Presentation timestamps and key-frame flags of a video's packets."""

    pts: np.ndarray  # (n,) int64
    key: np.ndarray  # (n,) bool


class Reader:
    """Frame-exact reading. First form: decodes from the start."""

    def __init__(self, path, index=None):
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise VideoError(f"{self.path}: no such file")
        n, key, pts, first = 0, [], [], None
        try:
            with av.open(self.path) as container:
                if not container.streams.video:
                    raise VideoError(f"{self.path}: no video stream")
                stream = container.streams.video[0]
                for frame in container.decode(stream):
                    first = first or frame
                    pts.append(n if frame.pts is None else frame.pts)
                    key.append(frame.key_frame)
                    n += 1
                rate, codec = stream.average_rate, stream.codec_context.name
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.path}: {error.strerror}") from error
        if not n:
            raise VideoError(f"{self.path}: no frame can be decoded")
        self.index = Index(np.array(pts, np.int64), np.array(key, bool))
        rotation = round(first.rotation / 90) * 90 % 360
        width, height = (first.width, first.height)[:: -1 if rotation % 180 else 1]
        self.info = Info(n, float(rate or 1), width, height, n / float(rate or 1), codec, rotation)

    @property
    def frames(self):
        return self.info.frames

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def decode(self, indices, short_side=None):
        indices = np.asarray(indices)
        flat = indices.reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.frames):
            raise IndexError(f"{self.path}: frames {flat.min()}..{flat.max()} asked of {self.frames}")
        width, height = self.info.width, self.info.height
        if self.info.rotation % 180:
            width, height = height, width
        if short_side:
            scale = short_side / min(width, height)
            size = [short_side if s == min(width, height) else 2 * round(s * scale / 2) for s in (width, height)]
            width, height = size
        wanted, got = set(flat.tolist()), {}
        with av.open(self.path) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
                    got[i] = np.rot90(rgb, self.info.rotation // 90)
                if len(got) == len(wanted):
                    break
        out = np.stack([got[i] for i in flat.tolist()])
        return out.reshape(*indices.shape, *out.shape[1:])


def probe(path):
    """Info of the video at `path`."""
    with Reader(path) as reader:
        return reader.info


def decode(path, indices, short_side=None):
    """One-shot `Reader(path).decode(indices, short_side)`."""
    with Reader(path) as reader:
        return reader.decode(indices, short_side)


def encode(path, frames, fps, codec="libx264", options=None, pix_fmt="yuv420p"):
    """Write `frames`, uint8 (T, H, W, 3) or an iterable of (H, W, 3), as a video file.

    The container follows from the file name (.mp4, .avi, .mkv ...). `options` go to the encoder
    (libx264: {"crf": "18", "g": "12"}). 4:2:0 needs even sides: pass pix_fmt="yuv444p" for odd ones.
    """
    path = os.fspath(path)
    try:
        with av.open(path, "w") as container:
            stream = None
            for rgb in frames:
                rgb = np.ascontiguousarray(rgb)
                if stream is None:
                    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001000))
                    stream.height, stream.width = rgb.shape[:2]
                    stream.pix_fmt, stream.options = pix_fmt, dict(options or {})
                    stream.codec_context.thread_count = 1
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            if stream is None:
                raise VideoError(f"{path}: no frames to write")
            container.mux(stream.encode())
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot write: {error}") from error




def _clips(starts, n, T, stride):
    return (np.asarray(starts, np.int64)[:, None] + stride * np.arange(T, dtype=np.int64)) % n  # (K, T)


def random_clips(n, rng, *, K, T, stride):
    """K clips of T frames, `stride` apart, from distinct random starts where possible: int64 (K, T).

    A video shorter than the clip wraps around (index modulo n); its clips start anywhere.
    """
    places = n - (T - 1) * stride
    starts = rng.permutation(places if places > 0 else n)
    return _clips(np.resize(starts, K), n, T, stride)


def ordered_clips(n, rng, *, K, T, stride, interval):
    """K non-overlapping clips in temporal order, `interval` frames between one and the next: int64 (K, T)."""
    step = (T - 1) * stride + 1 + interval
    places = n - (K * step - interval) + 1
    start = rng.integers(places) if places > 0 else 0
    return _clips(start + step * np.arange(K), n, T, stride)


def even_clips(n, rng=None, *, K, T, stride):
    """K clips evenly spread over the video, the same at every call (K = 1: the centre clip): int64 (K, T)."""
    places = max(1, n - (T - 1) * stride)
    return _clips((2 * np.arange(K) + 1) * places // (2 * K), n, T, stride)

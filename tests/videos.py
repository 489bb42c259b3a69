"""Real video files for the tests, of the kinds that datasets hold, and the reference that reading is held to."""

import struct
from fractions import Fraction

import av
import numpy as np

from be.video import Reader


def film(frames=40, height=48, width=64, seed=0):
    """Frames that differ from one another and give an encoder some work: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(30, 200, (height // 8 + 12, width // 8 + 12, 1)) + rng.integers(0, 40, 3)
    world = tiles.repeat(8, 0).repeat(8, 1)
    shots = []
    for t in range(frames):
        y, x = int(24 + 20 * np.sin(t / 5)), t % 40
        shot = world[y : y + height, x : x + width].copy()
        shot[: height // 4, : width // 4] = (37 * t) % 256  # no two neighbours alike in the corner
        shots.append(shot)
    return np.array(shots, np.uint8)


def write(path, frames, codec="libx264", rate=25, pts=None, pix_fmt="yuv420p", tag=None, audio=False, **options):
    """Encode `frames` at times `pts` (in 1/rate s, default 0, 1, 2, ...). Returns path."""
    options = {name.replace("_", "-"): str(value) for name, value in options.items()}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.thread_count = 1
        if tag:
            stream.codec_context.codec_tag = tag
        for t, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            picture.pts, picture.time_base = (t if pts is None else pts[t]), Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def remux(source, path, edit, **options):
    """Copy the packets of `source` to `path` as edit([(bytes, pts, dts, is_keyframe), ...]) would have them."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = old.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in old.demux(stream) if p.size]
        copy = new.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        for data, pts, dts, key in edit(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, key
            packet.pts, packet.dts = pts, dts
            new.mux(packet)
    return path


PLACEHOLDER = b"\x00\x00\x01\xb6\x50\x4f"  # an MPEG-4 P-picture of 1/25 s ticks that is "not coded"


def pack(packets):
    """What DivX and XviD did to B-pictures: P B -> [P B] [placeholder], and P B b -> [P B] [b] [placeholder]."""

    def kind(data):
        return "IPBS"[data[data.index(b"\x00\x00\x01\xb6") + 4] >> 6]

    packed, group = [], []
    for data, _, _, key in [*packets, (PLACEHOLDER, 0, 0, False)]:
        if group and kind(data) != "B":
            if len(group) > 1:
                group = [(group[0][0] + group[1][0], group[0][1]), *group[2:], (PLACEHOLDER, False)]
            packed += group
            group = []
        if key:
            at = data.index(b"\x00\x00\x01\xb6")
            data = data[:at] + b"\x00\x00\x01\xb2DivX503b1393p" + data[at:]
        group.append((data, key))
    return [(data, t, t, key) for t, (data, key) in enumerate(packed)]


def patch(path, box, offset, layout, *values):
    """Overwrite bytes of the first `box` of an MP4 file, `offset` bytes after its name. Returns path."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(box) + 4 + offset, *values)
    path.write_bytes(data)
    return path


def turn(path, degrees):
    """Make players turn the picture clockwise by 90, 180 or 270 degrees: the matrix of the track header."""
    one = 1 << 16
    cos, sin = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    return patch(path, b"tkhd", 40, ">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)


def whole(path):
    """The reference: every frame that plain, sequential decoding of the whole file gives, (n, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])


def decode(path, indices, short_side=None):
    """`Reader.decode` of a file that is wanted only once."""
    with Reader(path) as video:
        return video.decode(indices, short_side)


def probe(path):
    """`Reader.info` of a file."""
    with Reader(path) as video:
        return video.info


X264 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"


def _avi(path, **options):
    return write(path.with_suffix(".avi"), film(), "mpeg4", tag="XVID", **options)


def _edited(path, edit, source=None):
    source = source or _x264(path.with_name("source"))
    return remux(source, path.with_suffix(source.suffix), edit)


def _cut(path, box):
    """Leave out `box`, which is the last of the file, without a trace."""
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(box)])
    return path


def _trimmed(path):
    """Two thirds of a group cut off by an edit list: those pictures are decoded, but not shown."""
    return patch(_x264(path), b"elst", 12, ">i", 1024 + 8 * 512)


def _x264(path, suffix=".mp4", params="", **options):
    return write(path.with_suffix(suffix), film(), x264_params=X264 + params, **options)


def _without(packets):
    """Placeholders for some of the pictures, as encoders leave them that drop frames."""
    return [(d if i % 9 or k else PLACEHOLDER, p, t, k) for i, (d, p, t, k) in enumerate(packets)]


def _false_count(path):
    return patch(patch(_avi(path, bf=2, g=12), b"avih", 4 + 16, "<I", 7), b"strh", 4 + 32, "<I", 7)


def _first_group_lost(path):
    source = _x264(path.with_name("source"), ".mkv", params=":open-gop=1")
    return _edited(path, lambda packets: packets[[key for *_, key in packets].index(True, 1) :], source)


VARIABLE, OPEN = np.cumsum(np.arange(40) % 7 + 1).tolist(), ":open-gop=1"
HEVC = "keyint=12:min-keyint=12:bframes=3:log-level=none"

# name -> function of a path without suffix that writes such a file there and returns its path
KINDS = {
    "h264": _x264,
    "h264, one key frame": lambda path: write(path.with_suffix(".mp4"), film(), g=250),
    "h264, no B": lambda path: write(path.with_suffix(".mp4"), film(), g=12, bf=0),
    "h264, open GOP": lambda path: _x264(path, params=OPEN),
    "h264, open GOP, mkv": lambda path: _x264(path, ".mkv", params=OPEN),
    "h264, open GOP, ts": lambda path: _x264(path, ".ts", params=OPEN),
    "h264, open GOP, first group lost": _first_group_lost,
    "h264, variable rate": lambda path: _x264(path, rate=100, pts=VARIABLE),
    "h264, starts late": lambda path: _x264(path, ".mkv", pts=list(range(500, 540))),
    "h264, odd size": lambda path: write(path.with_suffix(".mp4"), film(40, 47, 63), pix_fmt="yuv444p", g=12),
    "h264, trimmed": _trimmed,
    "h264, avi": lambda path: _x264(path, ".avi"),
    "h264, no presentation times": lambda path: _edited(path, lambda ps: [(d, t, t, k) for d, _, t, k in ps]),
    "hevc, open GOP": lambda path: write(path.with_suffix(".mp4"), film(), "libx265", x265_params=HEVC),
    "vp9": lambda path: write(path.with_suffix(".webm"), film(), "libvpx-vp9", g=12),
    "vp8": lambda path: write(path.with_suffix(".webm"), film(), "libvpx", g=12),
    "mpeg4": lambda path: _avi(path, bf=0, g=12),
    "mpeg4, B": lambda path: _avi(path, bf=2, g=12),
    "mpeg4, odd size": lambda path: write(path.with_suffix(".avi"), film(40, 47, 63), "mpeg4", bf=2, g=12),
    "mpeg4, packed PB": lambda path: _edited(path, pack, _avi(path.with_name("source"), bf=1, g=12)),
    "mpeg4, packed PBb": lambda path: _edited(path, pack, _avi(path.with_name("source"), bf=2, g=12)),
    "mpeg4, dropped frames": lambda path: _edited(path, _without, _avi(path.with_name("source"), bf=0, g=12)),
    "mpeg4, no seek index": lambda path: _cut(_avi(path, bf=0, g=12), b"idx1"),
    "mpeg4, header counts 7 frames": _false_count,
    "mjpeg": lambda path: write(path.with_suffix(".avi"), film(), "mjpeg", pix_fmt="yuvj420p"),
    "one frame": lambda path: write(path.with_suffix(".mp4"), film(1)),
}

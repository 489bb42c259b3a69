"""Frame-exact reading of video files, encoding, and which frames make a clip. The only module that imports PyAV.

    with Reader(path) as video:                              # one open ...
        indices = random_clips(video.frames, rng, K=2, T=16, stride=4)
        clips = video.decode(indices, short_side=128)        # ... and one pass: uint8 (2, 16, 128, W, 3)

Frame i is the i-th picture that decoding the whole file gives, to the last bit; headers are not believed. Of a video's
hundreds of frames a sample needs some tens. What is saved on the others:
  * decoding starts at the key frame before each run of needed frames, wherever that skips something;
  * pictures from which no other is predicted (most B-pictures) are decoded only if they are needed themselves;
  * a run ends with its last needed packet: the decoder is then drained, not fed until the frame falls out.
"""

import math
import os
import re
import zlib
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Codecs with one shown picture in every packet. MPEG-4 Part 2 nearly is one, see _mpeg4_order. Videos of others (VP8
# has hidden pictures, MPEG-2 has fields) are decoded once to count their frames.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "libvpx-vp9", "av1", "libdav1d", "mjpeg"}
# Codecs in which "not a reference" means that nothing at all is predicted from it. (HEVC says it per layer.)
SKIPPABLE = {"h264", "mpeg4"}
# Opening a file decodes its first frame, to tell what the streams are. MP4 has all of that in its header.
TRUST_HEADER = {"analyzeduration": "1", "skip_frame": "all"}
# Or a title in Latin-1 makes a file unreadable. PyAV 19 has no such option.
ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoError(Exception):
    """A file that cannot be used as a video. The message starts with the path, then says what is wrong."""


@dataclass(frozen=True)
class Info:
    """What a video is, as counted and measured. Only where a file has no timestamps is fps the header's."""

    frames: int
    fps: float  # the mean, if the rate varies
    width: int  # px, as displayed: rotation applied
    height: int
    codec: str  # the decoder's name: "h264", "mpeg4", ...


@dataclass(frozen=True, eq=False)
class Index:
    """Which packet holds which frame. `Reader(path, index)` then need not pass over the file to find out.

        packets   I0  P3  B1  B2  P6  B4  B5  I7      as they lie in the file, in decoding order
        pts        0   3   1   2   6   4   5   7      when each is shown, and the label of the frame it yields
        key        1   0   0   0   0   0   0   1      where decoding can start
        order      0   2   3   1   5   6   4   7      frame i comes from packet order[i]
    pts and key are empty if timestamps cannot tell frames apart; those are then counted from the start.
    """

    order: np.ndarray  # (frames,) int32
    pts: np.ndarray  # (packets,) int64, in units of the stream's time base
    key: np.ndarray  # (packets,) bool

    def pack(self) -> bytes:
        """About a hundred bytes: differences of order and pts repeat."""
        parts = np.diff(self.order, prepend=np.int32(0)), np.diff(self.pts, prepend=np.int64(0)), self.key
        return zlib.compress(b"".join(part.tobytes() for part in parts), 9)

    @classmethod
    def unpack(cls, packed, frames: int) -> "Index":
        data = zlib.decompress(packed)
        packets = (len(data) - 4 * frames) // 9  # 4 bytes a frame, 8 + 1 a packet
        order = np.frombuffer(data, np.int32, frames).cumsum(dtype=np.int32)
        pts = np.frombuffer(data, np.int64, packets, 4 * frames).cumsum()
        return cls(order, pts, np.frombuffer(data, bool, packets, 4 * frames + 8 * packets))


class Damage(VideoError):
    """The decoder complains amid a video that is whole. Raised only by a strict Reader."""


class Reader(AbstractContextManager):
    """An open video: `.frames`, `.info`, `.index` and `.decode`. A context manager, for one thread.

    path: a regular file, or a folder of frames, which gives a FrameFolder. index: an earlier `Reader(path).index`,
    which spares the pass over the packets. One that does not fit the file is noticed when frames are decoded.
    Of several video streams it reads the one that FFmpeg calls the best, but no cover picture, which is one, too.

    `.damaged` says whether the frames of the last `decode` rest on damage inside the file. They are what FFmpeg makes
    of it in one pass over all of it, and where it gives no frame, the one before. strict: raise Damage instead. Raises
    VideoError unless path is whole and has a video stream that can be decoded.
    """

    def __new__(cls, path, *_, **__):
        return super().__new__(FrameFolder if os.path.isdir(path) else cls)

    def __init__(self, path, index: Index | None = None, strict: bool = False):
        self.path, self.strict, self.damaged, self._torn = os.fspath(path), strict, False, False
        self.files = [self.path]  # all that the video consists of
        self._container, self._frame_of, self._size = None, {}, None
        self._scaler, self._painter = VideoReformatter(), VideoReformatter()  # they keep their tables between frames
        self._start(index)

    def _start(self, index):
        if not os.path.isfile(self.path):
            raise VideoError(f"{self.path}: {'not a regular' if os.path.exists(self.path) else 'no such'} file")
        try:
            self._open(trust=index is not None)
            self.index = index or self._scan()
        except BaseException:
            self.close()
            raise
        order, pts = self.index.order, self.index.pts
        self.frames = len(order)
        if len(pts):  # pts -> frame number, or -1 if that packet's picture is not shown
            self._frame_of = dict.fromkeys(pts.tolist(), -1) | {t: n for n, t in enumerate(pts[order].tolist())}

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self._container is not None:
            self._container.close()

    @cached_property
    def _first(self):
        """Frame 0. Its size is that of the video."""
        with Reader(self.path, self.index, self.strict) as video:
            return next(video._pictures([0]))[1]

    @cached_property
    def info(self) -> Info:
        """Decodes one frame, for only a decoded frame tells whether it is rotated."""
        picture = self._first
        width, height = (picture.width, picture.height)[:: -1 if round(picture.rotation / 90) % 2 else 1]
        fps = float(self._stream.average_rate or self._stream.guessed_rate or 1)
        if self._frame_of and self.frames > 1:
            shown = self.index.pts[self.index.order]
            fps = (self.frames - 1) / (int(shown[-1] - shown[0]) * float(self._stream.time_base))
        return Info(self.frames, fps, width, height, self._stream.codec_context.name)

    def decode(self, indices, short_side: int | None = None) -> np.ndarray:
        """Frames of the video, upright and RGB: uint8 (*indices.shape, H, W, 3), contiguous.

        indices: integers in 0..frames-1, an array of any shape in any order.
        short_side: px (None: the native size). The shorter side becomes short_side; the longer one keeps the
        proportion, to the nearest even number, and is centre-cropped to 2 * short_side. Bilinear, anti-aliased.
        A frame of another size than frame 0 is stretched to that one's.
        Raises IndexError for an index that the video does not have, and VideoError if a needed frame cannot be
        decoded, rests on damage and the Reader is strict, or is to be scaled and is over 16 times as long as wide.
        """
        indices, self.damaged = np.asarray(indices), self._torn
        flat, out = indices.ravel(), None
        if flat.size and not 0 <= flat.min() <= flat.max() < self.frames:
            raise IndexError(f"{self.path}: frames {flat.min()}..{flat.max()} asked for, has 0..{self.frames - 1}")
        for n, picture in self._pictures(sorted(set(flat.tolist())) or [0]):
            if out is None:
                first = picture if (picture.width, picture.height) == self._size else self._first
                width, height = first.width, first.height
                if short_side:
                    short, long = sorted((width, height))
                    if long > 16 * short:
                        raise VideoError(f"{self.path}: {width} x {height} is over 16 times as long as wide")
                    long = max(short_side, 2 * round(long * short_side / short / 2))
                    width, height = (long, short_side) if width > height else (short_side, long)
                size = {"width": width, "height": height, "threads": 1}  # or scaling takes a thread per core
                turns = round(first.rotation / 90) % 4  # counter-clockwise; a mirror in its matrix is ignored
                H, W = (width, height) if turns % 2 else (height, width)
                most = 2 * short_side if short_side else max(H, W)
                top, left = max(0, H - most) // 2, max(0, W - most) // 2
                out = np.empty((flat.size, min(H, most), min(W, most), 3), np.uint8)
            if picture.format.name.startswith("yuv"):
                picture = self._scaler.reformat(picture, **size)  # half as many samples as in RGB, half the time
            rgb = self._painter.reformat(picture, format="rgb24", **size).to_ndarray()  # (height, width, 3)
            out[flat == n] = np.rot90(rgb, turns)[top : top + most, left : left + most]
        return out.reshape(*indices.shape, *out.shape[1:])

    def _open(self, trust=False):
        """Stand at the start of the file. trust: the header will do if it is MP4's."""
        self.close()
        try:
            if trust:
                with open(self.path, "rb") as file:
                    trust = file.read(8)[4:] == b"ftyp"
            # "file:", or "a:b.avi" is a protocol
            self._container = av.open("file:" + self.path, options=TRUST_HEADER if trust else {}, **ANY_TITLE)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: cannot be opened as a video: {error.strerror}") from error
        if trust and len(self._container.streams.video) > 1:
            return self._open()  # what tells them apart is not in the header
        if not self._container.streams.video:
            raise VideoError(f"{self.path}: has no video stream")
        best = self._container.streams.best("video").index
        self._stream = max(self._container.streams.video, key=lambda one: (one.frames != 1, one.index == best))
        if self._stream.codec_context is None:
            raise VideoError(f"{self.path}: its video codec is unknown to this build of FFmpeg")
        self._size = self._stream.codec_context.width, self._stream.codec_context.height
        self._stream.codec_context.thread_count = 1  # the loader has a process per core already

    def _packets(self):
        """The packets from here on, less the empty ones, which would end the decoding."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.path}: breaks off, or cannot be read on: {error.strerror}") from error

    def _scan(self) -> Index:
        """From the packets alone where they tell, or else by decoding and counting everything."""
        codec, avi = self._stream.codec_context, self._container.format.name == "avi"
        pts, key, shown, mpeg4, corrupt = [], [], [], [], None
        for packet in self._packets():
            corrupt = len(pts) if packet.is_corrupt else corrupt
            pts.append(packet.pts)
            key.append(packet.is_keyframe)
            shown.append(not packet.is_discard)  # an MP4 edit list can have pictures decoded but not shown
            if codec.name == "mpeg4":
                mpeg4.append(bytes(packet))
        if corrupt is not None and (self.strict or corrupt == len(pts) - 1):
            raise VideoError(f"{self.path}: breaks off, or is damaged, in packet {corrupt}")
        self._torn = corrupt is not None
        # Timestamps can serve as labels if every packet has its own, and if decoding starts with the first one.
        labels = corrupt is None and None not in pts and len(set(pts)) == len(pts) > 0 and key[0] and pts[0] == min(pts)
        # They tell the order too, unless made up: AVI stores none, and where pictures are reordered pts must be.
        made_up = avi or (labels and codec.has_b_frames and pts == sorted(pts))
        order = _mpeg4_order(mpeg4) if mpeg4 and all(shown) else None
        if labels and not made_up and codec.name in ONE_PICTURE_A_PACKET:
            order = [position for position in np.argsort(pts) if shown[position]]
        if order is None:
            order, labels = range(sum(picture is not None for _, picture, _ in self._counted())), False
        if not len(order):
            raise VideoError(f"{self.path}: not one frame of it can be decoded")
        if not labels or np.any(np.diff(np.array(pts)[order]) <= 0):
            order, pts, key = range(len(order)), [], []
        return Index(np.array(order, np.int32), np.array(pts, np.int64), np.array(key, bool))

    # Decoding. Generators of (number, picture, error): which frame, what came out of the decoder, its complaint.

    def _pictures(self, wanted):
        """(number, picture) of each of the frames `wanted`, a sorted list; or VideoError. A number can come twice."""
        try:
            yield from self._sound(wanted)
        except Damage:
            if self.strict:
                raise
            self.damaged = True
            yield from self._concealed(wanted)

    def _concealed(self, wanted):
        """The same of a damaged file, in one pass over all of it: so it does not matter which frames are wanted."""
        before, left = None, sorted(wanted, reverse=True)
        for n, picture, _ in self._counted():
            n = self._frame_of.get(picture.pts, -1) if picture and self._frame_of else n
            while picture and left and left[-1] <= n:
                yield left[-1], picture if left.pop() == n or before is None else before
            if not left:
                return
            before = picture if picture and n >= 0 else before
        if before is None:
            raise VideoError(f"{self.path}: not one frame of it can be decoded")
        yield from ((n, before) for n in left)

    def _sound(self, wanted):
        missing = set(wanted)
        for first, last, numbers in self._runs(wanted) if self._frame_of else ():
            yield from self._take(missing, self._run(first, last, numbers))
            if not missing.isdisjoint(numbers):
                missing = set(wanted)  # frames come out other than timestamps say: none of that was sure
                break
        if missing:
            yield from self._take(missing, self._counted())
        if missing:
            raise VideoError(f"{self.path}: frame {min(missing)} of {self.frames} cannot be decoded")

    def _take(self, missing, outputs):
        """(number, picture) of the frames that are in the set `missing`, and out of it from then on.
        The decoder tells of damage once, not of the pictures predicted from it. So any damage on the way counts."""
        for n, picture, error in outputs:
            if error or picture.is_corrupt:
                raise Damage(f"{self.path}: damaged near frame {max(n, 0)}: {error or 'parts of it are missing'}")
            if n in missing:
                missing.remove(n)
                yield n, picture
            if not missing and not self._frame_of:
                return  # without timestamps; with them, go on and see whether the number of frames is right

    def _feed(self, packet):
        """[pictures], error: what comes out of the decoder when `packet` goes in; None makes it give out the rest."""
        try:
            return self._stream.codec_context.decode(packet), None
        except av.error.FFmpegError as error:
            return [], error.strerror

    def _counted(self):
        """(number, picture, error) of the whole file, frames numbered as they come."""
        self._open()
        n = 0
        for packet in chain(self._packets(), [None]):
            pictures, error = self._feed(packet)
            if error:
                yield n, None, error
            for picture in pictures:
                yield n, picture, None
                n += 1
        if self._frame_of and n != self.frames and not self.damaged:
            with Reader(self.path) as again:  # the index may be of another file
                kind = Damage if np.array_equal(again.index.pts, self.index.pts) else VideoError
            raise kind(f"{self.path}: timestamps tell of {self.frames} frames, decoding gives {n}")

    def _runs(self, wanted):
        """Cut `wanted` into runs [first, last, numbers]: decoding packets first..last gives those frames.

            packets     K . . . . . . . . K . . . . . . . K . . . . . . . K . . . . . . .
            wanted        *   *     *                           *       * *     *
            runs        [ - - - - - ]                     [ - - - - - - - - - - ]
        """
        runs, packets, keys = [], self.index.order[wanted], np.flatnonzero(self.index.key)
        # Open GOP: pictures that follow a key frame but are shown before it are predicted from the group before
        first = keys[np.searchsorted(self.index.pts[keys], self.index.pts[packets], "right") - 1]
        for n, key, packet in zip(wanted, first.tolist(), packets.tolist(), strict=True):
            if runs and key <= runs[-1][1] + 1:
                runs[-1][1] = max(runs[-1][1], packet)
                runs[-1][2].append(n)
            else:
                runs.append([key, packet, [n]])
        return runs

    def _run(self, first, last, numbers):
        """(number, picture, error) of packets first..last. Stops short if frames come out in an unforeseen order."""
        decoder, pts = self._stream.codec_context, self.index.pts
        needed, end = set(pts[self.index.order[numbers]].tolist()), int(pts[last])
        start, previous = None, -1
        for packet in self._seek(first):
            label = packet.pts
            if label not in self._frame_of:
                return
            start = label if start is None else start
            if label < start:
                continue  # open GOP
            if decoder.name in SKIPPABLE:
                decoder.skip_frame = "DEFAULT" if label in needed else "NONREF"
            pictures, error = self._feed(packet)
            if error:
                yield self._frame_of[label], None, error
            if label == end:
                pictures += self._feed(None)[0]
            for picture in pictures:
                n = self._frame_of.get(picture.pts, -1)
                if n <= previous:
                    return
                previous = n
                yield n, picture, None
            if label == end:
                return

    def _seek(self, first):
        """The packets from key packet `first` on, or from an earlier key, as the container's own index has it."""
        for key in np.flatnonzero(self.index.key[: first + 1])[::-1]:
            try:
                self._container.seek(int(self.index.pts[key]), stream=self._stream)
            except av.error.FFmpegError:
                break  # not a file to seek in
            packets = self._packets()
            start = next((packet for packet in packets if packet.is_keyframe), None)
            if start is not None and start.pts is not None and start.pts <= self.index.pts[first]:
                return chain([start], packets)
        self._open()
        return self._packets()


class FrameFolder(Reader):
    """A folder with a picture for each frame, as older code has them: img_00001.jpg, frame000001.png, 7.jpg, ...

    The frames are in the order of the numbers, of one NAME before them; optical flow (flow_x_00001.jpg) may lie there,
    too. Only the files of wanted frames are read, and frame 0's for its size. A broken one is damage. fps: 25, unknown.
    """

    def _start(self, index):
        kinds = {}
        try:
            for name in os.listdir(self.path):
                if found := re.fullmatch(r"(?!\.|flow)(.*?)(\d+)\.(jpe?g|png)", name, re.IGNORECASE | re.DOTALL):
                    kinds.setdefault(found[1], []).append((int(found[2]), os.path.join(self.path, name)))
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(kinds) != 1:
            raise VideoError(f"{self.path}: not a regular file, and as a folder of frames it has pictures of "
                             f"{len(kinds)} kinds {sorted(kinds)[:4]}, not of one, such as img_00001.jpg")
        (numbered,) = kinds.values()
        self.files, self.frames = [file for _, file in sorted(numbered)], len(dict(numbered))
        if self.frames != len(numbered) or (index and len(index.order) != self.frames):
            raise VideoError(f"{self.path}: {len(numbered)} pictures for {self.frames} frames")
        self.index = Index(np.arange(self.frames, dtype=np.int32), np.empty(0, np.int64), np.empty(0, bool))

    @cached_property
    def info(self) -> Info:
        return Info(self.frames, 25.0, self._first.width, self._first.height, "pictures")

    def _sound(self, wanted):
        return self._take(set(wanted), self._counted(wanted))

    def _counted(self, wanted=None):
        for n in range(self.frames) if wanted is None else wanted:
            try:
                with open(self.files[n], "rb") as file:
                    data = file.read()
                decoder = av.CodecContext.create("mjpeg" if data.startswith(b"\xff\xd8") else "png", "r")
                decoder.thread_count, decoder.options = 1, {"err_detect": "explode"}  # or half of one passes for whole
                yield n, (decoder.decode(av.Packet(data)) or decoder.decode(None))[0], None
            except (av.error.FFmpegError, OSError, IndexError):
                yield n, None, f"{os.path.basename(self.files[n])} cannot be decoded"


def walk(root, start: str, known, levels: int, seen=()):
    """Paths relative to root of the files below ROOT/START, not more than so many folders deep. A folder whose name or
    path is `known` is a video, and not entered. Links are followed, but not in circles."""
    found, real, before = [], os.path.realpath(os.path.join(root, start)), "" if start in ("", ".") else f"{start}/"
    with suppress(OSError):  # no such folder, or none that may be read
        found = sorted(os.scandir(real), key=lambda one: one.name)
    for one in found if real not in seen else ():
        video = one.name in known or before + one.name in known
        if video or not (os.path.isdir(one.path) if one.is_symlink() else one.is_dir()):  # a link may loop
            yield before + one.name
        elif levels and one.name[0] != ".":
            yield from walk(root, before + one.name, known, levels - 1, (*seen, real))


def opens(path) -> bool:
    """Is this a video, as far as its header tells?"""
    with suppress(VideoError), Reader(path, None if os.path.isdir(path) else Index(*[np.empty(0, int)] * 3)):
        return True
    return False


def _mpeg4_order(packets):
    """Index.order of an MPEG-4 Part 2 stream (XviD, DivX: UCF101 and HMDB51); None unless each of the `packets`, bytes
    in the order of the file, surely yields one frame.

    AVI files have no presentation times. FFmpeg makes them up, wrongly where a B-picture is packed with the P-picture
    that it needs, as is common, and a placeholder left where it would have been:

        packets   [I0] [P2 B1] [-] [P4 B3] [-] [P5]
        decoded    I0   P2      B1  P4      B3  P5      one picture a packet: the other waits for the next one
        order       0   2       1   4       3   5       I and P are shown when the next of them comes, B at once
    """
    divx = re.search(rb"DivX\d+(Build|b)\d+p", packets[0])  # the encoder's announcement that it packs
    order, held, waiting = [], None, None
    for position, data in enumerate(packets):
        kinds = [waiting] if waiting else []
        if len(data) > 19:  # FFmpeg's bound on a placeholder
            kinds += ["IPBS"[found[1][0] >> 6] for found in re.finditer(rb"\x00\x00\x01\xb6(.)", data, re.DOTALL)]
        if not kinds or len(kinds) > (2 if divx else 1) or (waiting and data.startswith(b"\x00\x00\x01\xb0")):
            return None
        kind, waiting = kinds[0], kinds[1] if len(kinds) > 1 else None
        if kind == "B" and not order:
            return None  # lacks one of its two references
        shown, held = (position, held) if kind == "B" else (held, position)
        if shown is not None:
            order.append(shown)
    return None if waiting else [*order, held]


def encode(path, frames, fps, codec="libx264", options=None, pix_fmt="yuv420p"):
    """Write a video file, in the container that its name says: .mp4, .avi, .mkv, ...

    frames: uint8 RGB (T, H, W, 3), or an iterable of (H, W, 3), of which one at a time is held. fps: a number or a
    Fraction. codec, options: FFmpeg's, such as {"crf": "18", "g": "12"}. pix_fmt: "yuv420p" needs even sides.
    Raises VideoError if nothing is to be written, or the encoder refuses.
    """
    frames = iter(frames)
    if (first := next(frames, None)) is None:
        raise VideoError(f"{path}: no frames to write")
    try:
        with av.open(os.fspath(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
            stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pix_fmt
            stream.codec_context.thread_count = 1  # the same file whatever the machine
            for rgb in chain([first], frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
            container.mux(stream.encode())
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be written: {error.strerror}") from error


# Which frames make a clip. All return int64 (K, T): K clips of T frames, `stride` apart, of a video of n >= 1 frames.
# A clip spans (T - 1) * stride + 1 frames; in a shorter video it wraps around: T = 4, n = 5 gives 1 3 0 2.

def _clips(n, starts, T, stride):
    return (np.asarray(starts, np.int64)[:, None] + np.arange(T, dtype=np.int64) * stride) % n  # (K, T)


def random_clips(n, rng, *, K, T, stride):
    """K clips from random starts, distinct while there are so many; anywhere in a video shorter than a clip."""
    places = n - (T - 1) * stride
    return _clips(n, np.resize(rng.permutation(places if places > 0 else n), K), T, stride)


def distant_clips(n, rng, *, T, stride, gap):
    """Two clips in random order whose starts lie at least `gap` clip spans apart, or as far as the video allows.

    The distance is rounded up to frames, at least one. All pairs of starts that keep it are equally likely. A video
    without room for it is a circle, if that brings the clips farther apart: they wrap around, at most n // 2 apart.
    """
    span = (T - 1) * stride + 1
    apart, places = max(1, math.ceil(gap * span)), n - span + 1
    if places - 1 < min(apart, n // 2):
        distance = rng.integers(min(apart, n // 2), n // 2 + 1)
        first = rng.integers(n)
    else:
        distances = np.arange(min(apart, places - 1), places)
        ways = places - distances  # how many pairs of starts have that distance
        distance = rng.choice(distances, p=ways / ways.sum())
        first = rng.integers(places - distance)
    return _clips(n, rng.permutation([first, first + distance]), T, stride)


def ordered_clips(n, rng, *, K, T, stride, interval):
    """K clips in temporal order that do not overlap, `interval` frames from the end of one to the next. They start
    anywhere; in a video too short for all of them at 0, and wrap around."""
    step = (T - 1) * stride + 1 + interval
    places = n - (K * step - interval) + 1
    return _clips(n, (rng.integers(places) if places > 1 else 0) + step * np.arange(K), T, stride)


def even_clips(n, rng=None, *, K, T, stride):
    """K clips spread evenly over the video, always the same: rng is not used.

    The possible starts are cut into K equal parts, and each clip starts in the middle of one:

        n = 12, T = 3, stride = 2, K = 1      . . . . o . o . o . . .       4 6 8
                                   K = 2      . . o . o . o . . . . .       2 4 6
                                              . . . . . . o . o . o .       6 8 10

    Ten copies of one clip are one clip. So where a video has fewer than K starts, the K clips start evenly over all of
    its frames, and those that reach the end wrap around. K = 1 of a video shorter than a clip starts at 0.
    """
    places = max(1, n - (T - 1) * stride)
    places = places if places >= K else n
    return _clips(n, (2 * np.arange(K) + 1) * places // (2 * K), T, stride)


def static_clips(n, rng, *, like):
    """One random frame of the video instead of each that the sampler `like` chooses: nothing moves (paper 4.5)."""
    return np.full_like(like(n, rng), rng.integers(n))

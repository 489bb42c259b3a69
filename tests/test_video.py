"""Reading is held to plain sequential decoding, to the last bit, on every kind of file in tests/videos.py."""

import contextlib
import functools
import os
from fractions import Fraction

import av
import numpy as np
import pytest
import videos

from be import video


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """name -> (path, every frame of it by sequential decoding). Written when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            path = videos.KINDS[name](tmp_path_factory.mktemp("kind") / "video")
            made[name] = path, videos.whole(path)
        return made[name]

    return get


@pytest.fixture
def h264(kinds):
    return kinds("h264")


def index_sets(n, count, seed=0):
    """Index sets of all sorts: dense and thin, sorted or not, with repetitions, near both ends."""
    rng = np.random.default_rng(seed)
    yield from (np.arange(n), np.array([n - 1, 0, n - 1]))
    for _ in range(count):
        start, stride, size = rng.integers(n), rng.integers(1, 6), rng.integers(1, 9)
        yield (start + stride * np.arange(size)) % n
        yield rng.integers(0, n, rng.integers(1, 7))


# Reading


@pytest.mark.parametrize("kind", videos.KINDS)
def test_frames_are_those_of_sequential_decoding(kinds, kind, monkeypatch):
    """Of many indices, and each alone from an index that was packed."""
    path, whole = kinds(kind)
    with video.Reader(path) as reader:
        assert reader.frames == len(whole)
        if len(reader.index.pts):  # then the fast way must do; falling back to counting would hide that it did not
            monkeypatch.setattr(video.Reader, "_counted", lambda self: pytest.fail("fell back to counting"))
        for indices in index_sets(len(whole), 15):
            assert np.array_equal(reader.decode(indices), whole[indices]), indices
    index = video.Index.unpack(reader.index.pack(), len(whole))
    monkeypatch.setattr(video.Reader, "_scan", lambda self: pytest.fail("passed over the packets again"))
    monkeypatch.setattr(video.Reader, "_first", property(lambda self: pytest.fail("decoded frame 0 for its size")))
    with video.Reader(path, index) as reader:
        for i in range(len(whole)):
            assert np.array_equal(reader.decode([i])[0], whole[i]), i


def test_a_packed_index_is_the_same_and_small(kinds):
    for index in (video.Index(np.arange(3, dtype=np.int32), np.empty(0, np.int64), np.empty(0, bool)),
                  video.Index(np.array([2, 0], np.int32), np.array([2**40, -7, 5]), np.array([True, False, True])),
                  video.Reader(kinds("mpeg4, B")[0]).index):
        again = video.Index.unpack(np.frombuffer(packed := index.pack(), np.uint8), len(index.order))
        assert len(packed) < 400
        for got, want in zip(vars(again).values(), vars(index).values(), strict=True):
            assert got.dtype == want.dtype and np.array_equal(got, want)


def test_with_an_index_mp4_is_opened_without_decoding(kinds):
    for kind, decoded in [("h264", False), ("h264, trimmed", False), ("h264, open GOP, mkv", True), ("mpeg4, B", True)]:
        path, whole = kinds(kind)
        with video.Reader(path) as first, video.Reader(path, first.index) as reader:
            assert (reader._stream.codec_context.pix_fmt is not None) == decoded, kind
            assert reader.info == first.info and np.array_equal(reader.decode([7])[0], whole[7])


def test_only_files_that_need_it_are_counted_by_decoding(kinds):
    assert {kind for kind in videos.KINDS if not len(video.Reader(kinds(kind)[0]).index.pts)} == {
        "h264, avi", "h264, open GOP, first group lost", "h264, no presentation times", "vp8", "mpeg4, packed PB",
        "mpeg4, packed PBb", "mpeg4, dropped frames", "mjpeg", "one frame"}


def test_indices_have_any_shape_and_stay_in_the_video(h264):
    path, whole = h264
    indices = np.array([[[3, 3, 39], [0, 17, 3]]], np.int32)
    frames = videos.decode(path, indices)
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous and np.array_equal(frames, whole[indices])
    assert videos.decode(path, [], 16).shape == (0, 16, 22, 3) and videos.decode(path, 5).shape == (48, 64, 3)
    for beyond in [40], [-1], [0, 5, 1000]:
        with pytest.raises(IndexError, match=rf"{path}: .*{beyond[-1]} .* 0\.\.39"):
            videos.decode(path, beyond)


@pytest.mark.parametrize("kind", ["h264", "h264, one key frame", "mpeg4, B"])
def test_what_is_not_needed_is_not_decoded(kinds, kind, monkeypatch):
    path, _ = kinds(kind)
    fed, given, feed = [], [], video.Reader._feed

    def spy(self, packet):
        pictures, error = feed(self, packet)
        fed.append(packet)
        given.extend(pictures)
        return pictures, error

    monkeypatch.setattr(video.Reader, "_feed", spy)
    with video.Reader(path) as reader:
        order, pts, key = vars(reader.index).values()
        reader.decode([3, 6, 33])
    # Of each group, what lies between its key frame and the last needed packet, less what is shown before the key.
    expected = []
    for wanted in ([3, 6], [33]) if key.sum() > 1 else ([3, 6, 33],):
        first = max(k for k in np.flatnonzero(key) if pts[k] <= pts[order[wanted[0]]])
        span = pts[first : max(order[wanted]) + 1]
        expected += [*span[span >= span[0]].tolist(), None]  # None: drained, not fed until it falls out
    assert [packet and packet.pts for packet in fed] == expected
    assert len(given) < len(fed) - 4  # and the decoder left out some of that


def test_adjacent_groups_are_decoded_without_a_seek(h264, monkeypatch):
    seeks, seek = [], video.Reader._seek
    monkeypatch.setattr(video.Reader, "_seek", lambda self, first: seeks.append(first) or seek(self, first))
    with video.Reader(h264[0]) as reader:
        keys = np.flatnonzero(reader.index.key)
        reader.decode(np.arange(40))
        reader.decode([1, 14, 39])
    assert seeks == [0, keys[0], keys[1], keys[3]]


def test_timestamps_that_lie_are_found_out(tmp_path):
    """B-pictures with their times swapped: the order in which frames come out is the one that counts."""
    source = videos.write(tmp_path / "source.mp4", videos.film(), x264_params=videos.X264)

    def swap(packets):
        times = [pts for _, pts, _, _ in packets]
        for i in range(2, 30, 4):
            times[i], times[i + 1] = times[i + 1], times[i]
        return [(data, pts, dts, key) for pts, (data, _, dts, key) in zip(times, packets, strict=True)]

    path = videos.remux(source, tmp_path / "swapped.mp4", swap)
    whole = videos.whole(path)
    assert np.array_equal(videos.decode(path, np.arange(len(whole))), whole)


@pytest.mark.parametrize("name, n, rate", [("same.mp4", 40, 25), ("slower.mp4", 40, 20), ("bare.h264", 40, 25),
                                           ("short.mp4", 20, 25)])  # fmt: skip
def test_index_of_another_file(h264, tmp_path, name, n, rate):
    """It gives the right frames or an error, never others."""
    with video.Reader(h264[0]) as reader:
        index = reader.index
    path = videos.write(tmp_path / name, videos.film(n, seed=1), rate=rate, x264_params=videos.X264)
    with video.Reader(path, index) as reader:
        if n == 40:
            assert np.array_equal(reader.decode([7, 30]), videos.whole(path)[[7, 30]])
        else:
            with pytest.raises(video.VideoError, match=f"{path}: .*40 .*20"):
                reader.decode([7, 30])


@pytest.mark.parametrize("error", [0, 1024, 20 * 512])
def test_seeks_that_overshoot_are_repeated(h264, error):
    class Container:
        def __init__(self, real):
            self.real = real

        def seek(self, offset, stream):
            self.real.seek(offset + error, stream=stream)

        def __getattr__(self, name):
            return getattr(self.real, name)

    with video.Reader(h264[0]) as reader:
        reader._container = Container(reader._container)
        reader._counted = lambda: pytest.fail("fell back to counting")
        for i in range(40):
            assert np.array_equal(reader.decode([i])[0], h264[1][i])


def test_strange_names_and_titles(h264, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["concat:a.mp4", "%03d#[1] é.mp4"]:
        os.link(h264[0], name)
        assert videos.probe(name).frames == 40
    (tmp_path / "title.mp4").write_bytes(h264[0].read_bytes().replace(b"Lavf", b"\xe9\xff\xfev"))  # not UTF-8
    assert videos.probe(tmp_path / "title.mp4").frames == 40


# Info


def test_probe_counts_and_measures(kinds):
    assert videos.probe(kinds("h264")[0]) == video.Info(40, pytest.approx(25), 64, 48, "h264")
    assert videos.probe(kinds("mpeg4, header counts 7 frames")[0]).frames == 40
    assert videos.probe(kinds("h264, odd size")[0]).width == 63
    assert videos.probe(kinds("h264, starts late")[0]).fps == pytest.approx(25, abs=0.2)
    span = np.sum(np.arange(1, 40) % 7 + 1) / 100  # s from the first frame to the last
    assert videos.probe(kinds("h264, variable rate")[0]).fps == pytest.approx(39 / span)
    packed = videos.probe(kinds("mpeg4, packed PB")[0])
    assert (packed.fps, packed.codec) == (25, "mpeg4")


# Which stream, and which colours


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_cover_is_not_the_video(tmp_path, suffix, place):
    """A picture as one of the streams, first or last, whether or not the file calls it an attachment."""
    film, cover, path = videos.film(), videos.film(1, 96, 96, seed=5), tmp_path / f"video{suffix}"
    with av.open(str(path), "w") as container:
        streams = []
        kinds = [("mjpeg", "yuvj420p", (96, 96)), ("libx264", "yuv420p", (48, 64))]
        for codec, pix_fmt, (height, width) in kinds[:: -1 if place else 1]:
            streams.append(container.add_stream(codec, rate=25))
            streams[-1].height, streams[-1].width, streams[-1].pix_fmt = height, width, pix_fmt
        for frames, stream in zip((film, cover) if place else (cover, film), streams, strict=True):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    with video.Reader(path) as reader, video.Reader(path, reader.index) as again:
        assert (reader.frames, reader.info.width, reader.info.codec) == (40, 64, "h264")
        for one in reader, again:
            assert np.abs(one.decode([3, 30]).astype(int) - film[[3, 30]]).mean() < 12


PRIMARIES = {"bt601": (5, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722), "bt2020": (9, 0.2627, 0.0593)}
COLOURS = np.array([(200, 30, 40), (20, 180, 60), (40, 50, 220), (230, 220, 30), (128, 128, 128), (250, 250, 250)])


@pytest.mark.parametrize("matrix", PRIMARIES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt, codec", [("yuv420p", "libx264"), ("yuv444p", "libx264"), ("yuv420p10le", "libx264"),
                                            ("yuv420p", "libvpx-vp9"), ("yuv420p10le", "libx265")])
def test_colours_are_those_that_the_file_says(tmp_path, matrix, full, pix_fmt, codec):
    """Planes by the standard's own formulas, of flat colours, come out within 3 levels, scaled or not."""
    tag, kr, kb = PRIMARIES[matrix]
    r, g, b = COLOURS.T / 255
    y, scale, kind = kr * r + (1 - kr - kb) * g + kb * b, 1, np.uint8
    if "10" in pix_fmt:
        scale, kind = 4, np.uint16
    luma, chroma, black = (255, 255, 0) if full else (219, 224, 16)
    planes = np.stack([black + luma * y, 128 + chroma * (b - y) / 2 / (1 - kb), 128 + chroma * (r - y) / 2 / (1 - kr)])
    planes = (planes * scale).round().clip(0, 256 * scale - 1).astype(kind)
    quality = {"libx264": {"qp": "1"}, "libx265": {"x265-params": "qp=1:log-level=none"}, "libvpx-vp9": {"crf": "0"}}
    with av.open(str(path := tmp_path / "video.mkv"), "w") as container:
        stream = container.add_stream(codec, rate=25, options=quality[codec])
        stream.width, stream.height, stream.pix_fmt = 256, 128, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries = tag, 2 if full else 1, tag
        for values in planes.T:
            picture = av.VideoFrame(256, 128, pix_fmt)
            for plane, value in zip(picture.planes, values, strict=True):
                plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
            picture.colorspace, picture.color_range = tag, 2 if full else 1
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    for short_side in (None, 64):
        frames = videos.decode(path, np.arange(len(COLOURS)), short_side).astype(int)
        middle = frames[:, frames.shape[1] // 2, frames.shape[2] // 2]
        assert np.abs(middle - COLOURS).max() <= 3, (middle - COLOURS).tolist()


# Rotation and size


@pytest.mark.parametrize("codec, sizes", [("libvpx-vp9", [(48, 64), (64, 48)]), ("libvpx", [(48, 64), (96, 128)]),
                                          ("mjpeg", [(48, 64), (32, 96), (48, 64)])])
def test_all_frames_have_the_size_of_the_first(tmp_path, codec, sizes):
    """As recordings of calls change it: whichever frames are asked for, each comes out stretched to that size."""
    parts, path = [], tmp_path / "video.mkv"
    for i, size in enumerate(sizes):
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        parts.append(videos.write(tmp_path / f"{i}.mkv", videos.film(20, *size, seed=i), codec, pix_fmt=pix_fmt))
    with av.open(str(parts[0])) as first, av.open(str(path), "w") as container:
        copy, end = container.add_stream_from_template(first.streams.video[0]), 0
        for part in parts:
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = end
                        packet.stream, end = copy, end + 40
                        container.mux(packet)
    with video.Reader(path) as reader:
        n = 20 * len(sizes)
        assert (reader.frames, reader.info.height, reader.info.width) == (n, *sizes[0])
        for short_side, size in (None, sizes[0]), (24, (24, 32)):
            whole = reader.decode(np.arange(n), short_side)
            assert whole.shape == (n, *size, 3)
            for indices in ([0, 25], [25], [39, 3], [n - 1]):
                with video.Reader(path, reader.index) as again:
                    assert np.array_equal(again.decode(indices, short_side), whole[indices])
    second, got = videos.whole(parts[1])[5], videos.decode(path, 25)  # stretched, by the means of its quarters
    means = [x[: len(x) // 2 * 2, : x.shape[1] // 2 * 2] for x in (second, got)]
    means = [x.reshape(2, len(x) // 2, 2, x.shape[1] // 2, 3).mean((1, 3)) for x in means]
    assert np.abs(means[0] - means[1]).max() < 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_comes_out_upright(tmp_path, degrees):
    path = videos.write(tmp_path / "video.mp4", videos.film(6))
    stored = videos.whole(path)
    videos.turn(path, degrees)
    # The reference: each displayed pixel from the stored one that the clockwise turn brings there.
    n, height, width = stored.shape[:3]
    y, x = np.mgrid[:height, :width]
    for _ in range(degrees // 90):
        y, x, height, width = x, height - 1 - y, width, height  # (y, x) -> (x, H - 1 - y)
    upright = np.zeros((n, height, width, 3), np.uint8)
    upright[:, y, x] = stored
    info = videos.probe(path)
    assert (info.height, info.width) == (height, width)
    frames = videos.decode(path, np.arange(6))
    assert frames.flags.c_contiguous and np.array_equal(frames, upright)
    assert videos.decode(path, [0], 24).shape == ((1, 24, 32, 3) if degrees == 180 else (1, 32, 24, 3))


@pytest.mark.parametrize("stored, short_side, decoded", [
    ((48, 64), 24, (24, 32)), ((64, 48), 24, (32, 24)), ((48, 64), 96, (96, 128)), ((48, 48), 25, (25, 25)),
    ((48, 62), 25, (25, 32)),  # 32.3 to the nearest even number
    ((32, 160), 16, (16, 32)), ((160, 32), 16, (32, 16))])  # 80 long, cropped to twice the short side
def test_short_side(tmp_path, stored, short_side, decoded):
    path = videos.write(tmp_path / "video.mp4", videos.film(4, *stored), crf=1)
    assert videos.decode(path, [0, 3], short_side).shape == (2, *decoded, 3)


@pytest.mark.parametrize("kind", ["h264", "h264, odd size", "mjpeg", "vp9"])
def test_scaling_keeps_place_and_colour(kinds, kind):
    """Against FFmpeg's scaler in one step from stored to RGB, and against the mean colour at native size."""
    path, whole = kinds(kind)
    with av.open(str(path)) as container:
        pictures = [picture.to_ndarray(format="rgb24", width=32, height=24) for picture in container.decode(video=0)]
    small = videos.decode(path, np.arange(len(whole)), 24).astype(int)
    assert np.abs(small - np.array(pictures)).mean() < 2
    assert np.abs(small.mean((1, 2)) - whole.mean((1, 2))).max() < 2


def test_long_pictures(tmp_path):
    """The crop is central; what is over 16 times as long as wide is not scaled."""
    path = videos.write(tmp_path / "video.mp4", videos.film(2, 32, 160))
    with av.open(str(path)) as container:
        full = next(container.decode(video=0)).to_ndarray(format="rgb24", width=80, height=16).astype(int)
    cropped = videos.decode(path, [0], 16)[0]
    assert np.argmin([np.abs(cropped - full[:, left : left + 32]).mean() for left in range(49)]) == 24

    path = videos.write(tmp_path / "long.mp4", np.zeros((2, 16, 288, 3), np.uint8))
    assert videos.decode(path, [0]).shape == (1, 16, 288, 3)
    with pytest.raises(video.VideoError, match=f"{path}: 288 x 16"):
        videos.decode(path, [0], 16)


# Folders of frames


def picture(path, frame, codec="png"):
    """Write one frame as a picture, PNG without loss, or JPEG at its best."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.time_base = *frame.shape[:2], Fraction(1, 25)
    encoder.pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
    if codec == "mjpeg":
        encoder.options = {"qmin": "1", "qmax": "1"}
    source = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=encoder.pix_fmt)
    path.write_bytes(b"".join(map(bytes, (*encoder.encode(source), *encoder.encode(None)))))


def folder(path, frames, pattern, first=1, codec="png"):
    path.mkdir(exist_ok=True)
    for number in np.random.default_rng(0).permutation(len(frames)):  # in no order on the disk
        picture(path / (pattern % (number + first)), frames[number], codec)
    return path


@pytest.mark.parametrize("pattern, first", [
    ("img_%05d.jpg", 1), ("image_%05d.jpg", 1), ("frame%06d.jpg", 0), ("%05d.jpg", 1), ("%d.png", 0),
    ("frame_%d.JPEG", 95), ("v_Archery_g01_c01_%04d.png", 1)])
def test_a_folder_of_frames_is_a_video(tmp_path, pattern, first):
    """Exactly the frames of the numbers, in their order (9 before 10), whatever else lies there."""
    film = videos.film(13)
    folder(tmp_path, film, pattern, first)  # PNG, even as .jpg: what a file is, is seen from its content
    folder(tmp_path, film[:3, :16], "flow_x_%05d.jpg")
    for other in (".DS_Store", "._" + pattern % first, "Thumbs.db", "thumbnail.jpg", "n_frames", "labels.txt"):
        (tmp_path / other).write_bytes(b"\0\5\26\7")
    with video.Reader(tmp_path) as reader:
        assert isinstance(reader, video.FrameFolder) and (reader.frames, reader.info.fps) == (13, 25)
        assert (reader.info.width, reader.info.height) == (64, 48)
        for indices in index_sets(13, 5):
            assert np.array_equal(reader.decode(indices), film[indices])
        assert reader.decode([[3, 1]], 24).shape == (1, 2, 24, 32, 3) and not reader.damaged
        assert [os.path.basename(name) for name in reader.files] == [pattern % (first + i) for i in range(13)]
        with pytest.raises(IndexError):
            reader.decode([13])
    with video.Reader(tmp_path, video.Index.unpack(reader.index.pack(), 13)) as again:
        assert np.array_equal(again.decode([7]), film[[7]])
    with pytest.raises(video.VideoError, match=f"{tmp_path}: 13 pictures for 13 frames"):
        video.Reader(tmp_path, video.Index(np.arange(5), np.empty(0, np.int64), np.empty(0, bool)))


def test_jpegs_are_as_libjpeg_reads_them(tmp_path):
    image = pytest.importorskip("PIL.Image")
    film = videos.film(5, 47, 63)
    folder(tmp_path, film, "img_%05d.jpg", codec="mjpeg")
    oracle = np.array([np.asarray(image.open(tmp_path / f"img_{i + 1:05d}.jpg")) for i in range(5)], int)
    frames = videos.decode(tmp_path, np.arange(5))
    assert np.abs(frames - oracle).max() <= 4 and np.abs(frames - oracle).mean() < 1
    assert np.abs(frames.astype(int) - film).mean() < 4
    for i in range(5):  # as cameras and other programs write them: half the colours, in several passes, grey
        shades = image.fromarray(film[i]).convert("L" if i == 4 else "RGB")
        shades.save(tmp_path / f"img_{i + 1:05d}.jpg", quality=90, progressive=i % 2 == 0, subsampling=2)
    oracle = np.array([np.asarray(image.open(name).convert("RGB")) for name in sorted(tmp_path.iterdir())], int)
    frames = videos.decode(tmp_path, np.arange(5))
    assert np.abs(frames - oracle).mean() < 4 and np.abs(frames.mean((1, 2)) - oracle.mean((1, 2))).max() < 2


def test_only_the_needed_files_of_a_folder_are_read(tmp_path):
    film = videos.film(12)
    folder(tmp_path, film, "image_%05d.jpg")
    for i in set(range(12)) - {0, 3, 8}:
        (tmp_path / f"image_{i + 1:05d}.jpg").write_bytes(b"")
    with video.Reader(tmp_path, strict=True) as reader:
        assert np.array_equal(reader.decode([8, 3]), film[[8, 3]])


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda _: b"<p>", None])
def test_a_damaged_picture_is_the_one_before(tmp_path, codec, damage):
    film = videos.film(6)
    folder(tmp_path, film, "%03d.jpg", codec=codec)
    whole = videos.decode(tmp_path, np.arange(6))
    for number in (1, 4, 5):
        path = tmp_path / f"{number:03d}.jpg"
        if damage:
            path.write_bytes(damage(path.read_bytes()))
        else:
            path.unlink(), path.symlink_to("gone")
    with video.Reader(tmp_path) as reader:
        assert np.array_equal(reader.decode([1, 2, 5]), whole[[1, 2, 5]]) and not reader.damaged
        assert np.array_equal(reader.decode(np.arange(6)), whole[[1, 1, 2, 2, 2, 5]]) and reader.damaged
    with video.Reader(tmp_path, strict=True) as reader, pytest.raises(video.Damage, match="001.jpg cannot be decoded"):
        reader.decode([0])
    for path in tmp_path.iterdir():
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(video.VideoError, match=f"{tmp_path}: not one frame"):
        videos.decode(tmp_path, [3])


@pytest.mark.parametrize("names, said", [
    ([], "not a regular file, and .* 0 kinds .*img_00001.jpg"), (["v.avi", ".1.jpg", "flow_x_1.jpg"], "of 0 kinds"),
    (["left_1.jpg", "right_1.jpg"], "2 kinds .'left_', 'right_'."), (["1.jpg", "01.jpg"], "2 pictures for 1 frames")])
def test_folders_that_are_no_video(tmp_path, names, said):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(video.VideoError, match=f"^{tmp_path}: .*{said}"):
        video.Reader(tmp_path)


# What is not a video, or not whole


def _truncated(path):
    """The table of contents comes first and survives."""
    source = videos.write(path.with_name("source.mp4"), videos.film(), x264_params=videos.X264)
    data = videos.remux(source, path, lambda packets: packets, movflags="faststart").read_bytes()
    path.write_bytes(data[: int(0.7 * len(data))])


def _garbled(path):
    """A sound container around packets of noise."""
    rng = np.random.default_rng(0)
    source = videos.write(path.with_name("source.mp4"), videos.film(), x264_params=videos.X264)
    videos.remux(source, path, lambda packets: [(rng.bytes(len(d)), p, t, k) for d, p, t, k in packets])


BROKEN = {  # tests/test_bad_input.py has more of them
    "missing": (lambda path: None, "no such file"),
    "directory": (lambda path: path.mkdir(), "not a regular file, and as a folder of frames it has pictures of 0"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(20000)), "cannot be opened as a video"),
    "cut short": (_truncated, "breaks off"),
    "garbled": (_garbled, "frame"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_named(tmp_path, what):
    make, reason = BROKEN[what]
    make(path := tmp_path / "video.mp4")
    for use in (lambda path: videos.probe(str(path)), lambda path: videos.decode(path, [0, 30])):
        with pytest.raises(video.VideoError) as caught:
            use(path)
        assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("kind", ["h264", "h264, no B", "mpeg4", "mpeg4, B", "mpeg4, packed PB", "hevc, open GOP"])
def test_damage_is_told_and_costs_no_other_frame(kinds, tmp_path, kind, header):
    """Frames of a damaged file: as sequential decoding has them, whichever are asked for; strict: an error."""
    path, sound = kinds(kind)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    errors = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        at, size = packets[13 + seed]  # in the second group of pictures, of four
        start, end = at + (0 if header else size // 3), at + size - 2
        data = bytearray(path.read_bytes())
        data[start:end] = rng.bytes(end - start)
        damaged = tmp_path / path.name
        damaged.write_bytes(data)
        sequential = []
        with av.open(str(damaged)) as container:
            container.streams.video[0].codec_context.thread_count = 1  # threads make up other pictures
            for packet in container.demux(video=0):
                with contextlib.suppress(av.error.InvalidDataError):
                    sequential += [picture.to_ndarray(format="rgb24") for picture in packet.decode()]
        with video.Reader(damaged) as reader:
            whole = reader.decode(np.arange(reader.frames))
        for i in range(reader.frames):
            with video.Reader(damaged, reader.index) as lenient, video.Reader(damaged, reader.index, True) as strict:
                # FFmpeg learns from three pictures how MPEG-4 is padded, and takes damage for that until then
                lenient.decode(np.arange(4)), strict.decode(np.arange(4))
                frame = lenient.decode([i])[0]
                assert np.array_equal(frame, whole[i]) or not lenient.damaged
                try:
                    assert np.array_equal(strict.decode([i])[0], frame) and not lenient.damaged
                except video.Damage as error:
                    assert str(error).startswith(f"{damaged}: ") and lenient.damaged
                    errors += 1
                    assert i >= 8  # the first group is untouched ...
                    assert i < 28 or not len(reader.index.pts)  # ... and so are the last ones, given timestamps
            # Where decoding loses a frame, `sequential` is off by one from there on; `sound` is not.
            candidates = [frames[i] for frames in (sound, sequential) if i < len(frames)]
            candidates += sequential if lenient.damaged and len(sequential) < reader.frames else []
            assert any(np.array_equal(frame, candidate) for candidate in candidates), (seed, i)
    assert errors


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_broadcasts_joined_by_cat(tmp_path, codec):
    """MPEG transport streams may be joined so; the counters of their packets jump there, which looks like damage."""
    parts = [videos.write(tmp_path / f"{i}.ts", videos.film(20, seed=i), codec, g=10) for i in range(2)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with video.Reader(path) as reader:
        whole = videos.whole(path)
        assert reader.frames == len(whole) > 36
        for indices in index_sets(len(whole), 5):
            assert np.array_equal(reader.decode(indices), whole[indices]) and reader.damaged
    with pytest.raises(video.VideoError, match="breaks off, or is damaged"):
        video.Reader(path, strict=True)


@pytest.mark.parametrize("kind", ["mpeg4, B", "h264"])
def test_two_bytes_cost_no_video(kinds, tmp_path, kind):
    path, sound = kinds(kind)
    with av.open(str(path)) as container:
        at, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][24]  # the third key frame, of four
    data = bytearray(path.read_bytes())
    for i in range(at + size // 2, at + size // 2 + 2):
        data[i] ^= 255
    (damaged := tmp_path / path.name).write_bytes(data)
    with video.Reader(damaged) as reader:
        frames = reader.decode(np.arange(40))
        assert reader.damaged and not np.array_equal(frames, sound)
        assert sum(map(np.array_equal, frames, sound)) > 20 and np.abs(frames.astype(int) - sound).mean() < 15
        reader.decode(np.arange(4))
        assert not reader.damaged  # these do not rest on it
    with video.Reader(damaged, strict=True) as reader, pytest.raises(video.Damage, match=f"{damaged}: damaged near"):
        reader.decode(np.arange(40))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts file handles in /proc")
def test_no_handle_is_left_open(kinds, tmp_path):
    paths = [kinds(kind)[0] for kind in ("h264", "mpeg4, packed PB")]
    for what, (make, _) in BROKEN.items():
        paths.append(tmp_path / f"{what}.mp4")
        make(paths[-1])

    def use():
        for path in paths:
            with contextlib.suppress(video.VideoError):
                videos.decode(path, [0, 30])
        return sorted(os.listdir("/proc/self/fd"))

    assert use() == use()


def test_ffmpeg_is_silent(kinds, tmp_path, capfd):
    _garbled(tmp_path / "garbled.mp4")
    with pytest.raises(video.VideoError):
        videos.decode(tmp_path / "garbled.mp4", [5])
    videos.decode(kinds("mpeg4, packed PB")[0], [5])
    video.encode(tmp_path / "video.mp4", videos.film(5), 25)
    assert capfd.readouterr() == ("", "")


# Writing


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), [(".mkv", "ffv1", "bgr0"), (".mp4", "libx264rgb", "rgb24")])
def test_lossless_codecs_give_back_what_was_written(tmp_path, suffix, codec, pix_fmt):
    frames = videos.film(12, 47, 63)
    video.encode(tmp_path / f"v{suffix}", frames, Fraction(30000, 1001), codec, {"qp": "0"}, pix_fmt)
    assert np.array_equal(videos.decode(tmp_path / f"v{suffix}", np.arange(12)), frames)
    assert videos.probe(tmp_path / f"v{suffix}").fps == pytest.approx(29.97, abs=0.01)


def test_encode_takes_an_iterator_and_options(tmp_path):
    frames = videos.film(30)
    for crf in ("10", "40"):
        video.encode(tmp_path / f"{crf}.mp4", (frame for frame in frames), 12.5, options={"crf": crf, "g": "5"})
        with video.Reader(tmp_path / f"{crf}.mp4") as reader:
            assert reader.frames == 30 and reader.info.fps == pytest.approx(12.5) and reader.index.key.sum() == 6
    assert (tmp_path / "10.mp4").stat().st_size > 2 * (tmp_path / "40.mp4").stat().st_size
    assert np.abs(videos.decode(tmp_path / "10.mp4", [7])[0].astype(int) - frames[7])[16:, 24:].mean() < 10


def test_encode_refuses(tmp_path):
    for name, frames, why in ("v", [], "no frames"), ("v", videos.film(2, 47, 63), "cannot be written"), (
            "none/v", videos.film(2), "cannot be written"):
        with pytest.raises(video.VideoError, match=f"^{tmp_path}/{name}.mp4: {why}"):
            video.encode(tmp_path / f"{name}.mp4", frames, 25)


# Which frames make a clip

CLIPS = {"random": video.random_clips, "ordered": functools.partial(video.ordered_clips, interval=3),
         "even": video.even_clips}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("n", [1, 7, 16, 61, 62, 300])
@pytest.mark.parametrize("K, T, stride", [(1, 1, 1), (2, 16, 4), (3, 16, 1), (10, 16, 4)])
def test_clips_are_in_range_evenly_strided_and_reproducible(name, n, K, T, stride):
    for seed in range(5):
        clips, again = (CLIPS[name](n, np.random.default_rng(seed), K=K, T=T, stride=stride) for _ in range(2))
        assert clips.shape == (K, T) and clips.dtype == np.int64 and np.array_equal(clips, again)
        assert clips.min() >= 0 and clips.max() < n
        assert np.all((np.diff(clips, axis=1) - stride) % n == 0)  # strides, around the end of a short video
        if n - (T - 1) * stride >= (K if name == "even" else 1) and name != "ordered":
            assert np.all(np.diff(clips, axis=1) == stride)  # and not around the end of a long one


def test_random_clips_start_anywhere_and_differ():
    starts = [video.random_clips(12, np.random.default_rng(s), K=3, T=3, stride=2)[:, 0] for s in range(400)]
    assert all(len(set(s)) == 3 for s in starts)
    counts = np.bincount(np.concatenate(starts), minlength=8)
    assert len(counts) == 8  # 12 - 4: the last clip ends with the video
    assert counts.min() > 0.7 * 150 and counts.max() < 1.3 * 150  # 3 of 8 places, 400 times: 150 each
    assert len({tuple(s) for s in starts}) > 200  # in any order
    # Fewer places than clips: each once before any twice.
    few = video.random_clips(6, np.random.default_rng(0), K=5, T=3, stride=2)[:, 0]
    assert sorted(few) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])
    # Too short: starts anywhere, still distinct.
    short = video.random_clips(5, np.random.default_rng(0), K=5, T=4, stride=2)
    assert sorted(short[:, 0]) == [0, 1, 2, 3, 4]
    assert np.array_equal(short[short[:, 0] == 1], [[1, 3, 0, 2]])


def test_ordered_clips_do_not_overlap():
    starts = set()
    for seed in range(200):
        clips = video.ordered_clips(66, np.random.default_rng(seed), K=3, T=16, stride=1, interval=8)
        assert np.all(clips[1:, 0] - clips[:-1, -1] == 9)  # 8 frames between
        starts.add(int(clips[0, 0]))
    assert starts == {0, 1, 2}  # 66 - (3 * 16 + 2 * 8) = 2
    short = video.ordered_clips(50, np.random.default_rng(0), K=3, T=16, stride=1, interval=8)
    assert short[:, 0].tolist() == [0, 24, 48] and short[2, :4].tolist() == [48, 49, 0, 1]


@pytest.mark.parametrize("n", [40, 93, 186, 300])
def test_distant_clips_keep_their_distance(n):
    """Clips of 16 frames, stride 4, span 61: half of that is 31 frames; a video of 40 is a circle of at most 20."""
    pairs = [video.distant_clips(n, np.random.default_rng(s), T=16, stride=4, gap=0.5)[:, 0] for s in range(3000)]
    apart = np.array([abs(int(a) - int(b)) for a, b in pairs])
    apart = np.minimum(apart, n - apart) if n < 61 else apart
    assert apart.min() >= (20 if n < 61 else 31)
    assert abs(np.mean([a < b for a, b in pairs]) - 0.5) < 0.04  # in random order
    # Against all pairs, counted one by one: each is as likely.
    places = n if n < 61 else n - 60
    far = [(a, b) for a in range(places) for b in range(places)
           if (min(abs(a - b), n - abs(a - b)) == 20 if n < 61 else abs(a - b) >= 31)]
    assert set(map(tuple, (p.tolist() for p in pairs))) <= set(far)
    expected = np.bincount([a for a, _ in far], minlength=places) / len(far)
    seen = np.bincount([int(a) for a, _ in pairs], minlength=places) / len(pairs)
    assert np.abs(np.cumsum(seen) - np.cumsum(expected)).max() < 2.2 / np.sqrt(3000)  # Kolmogorov, 1e-4


def test_distant_clips_where_there_is_no_room():
    """As far as the video allows: half way around one that has no room, and never the same frames twice."""
    for n in (41, 60, 61, 62, 70, 91):
        starts = [video.distant_clips(n, np.random.default_rng(s), T=16, stride=4, gap=0.5)[:, 0] for s in range(300)]
        apart = {min(abs(int(a) - int(b)), n - abs(int(a) - int(b))) for a, b in starts}
        assert apart == set(range(min(31, n // 2), n // 2 + 1)), n  # 31 is half a span of 61
    starts = [video.distant_clips(70, np.random.default_rng(s), T=16, stride=4, gap=2)[:, 0] for s in range(300)]
    assert {min(abs(int(a) - int(b)), 70 - abs(int(a) - int(b))) for a, b in starts} == {35}
    pairs = [video.distant_clips(100, np.random.default_rng(s), T=16, stride=4, gap=0)[:, 0] for s in range(500)]
    near = {abs(int(a) - int(b)) for a, b in pairs}
    assert min(near) == 1 and max(near) > 30  # gap 0: distinct, and that is all


def test_even_clips_cover_the_video():
    assert video.even_clips(12, K=1, T=3, stride=2).tolist() == [[4, 6, 8]]
    assert video.even_clips(12, K=2, T=3, stride=2).tolist() == [[2, 4, 6], [6, 8, 10]]
    for n in (70, 100, 187, 1000):
        starts = video.even_clips(n, K=10, T=16, stride=4)[:, 0]
        # Each start stands for a tenth of the possible ones, in the middle of it.
        assert np.all(np.abs(starts + 0.5 - (np.arange(10) + 0.5) * (n - 60) / 10) <= 0.5)
        middle = video.even_clips(n, K=1, T=16, stride=4)[0]
        assert abs((middle[0] + middle[-1]) / 2 - (n - 1) / 2) <= 0.5


@pytest.mark.parametrize("n", [10, 16, 40, 61, 69])
def test_even_clips_of_short_videos_are_different_ones(n):
    """Fewer than ten starts: ten different ones over all frames, wrapping around."""
    clips = video.even_clips(n, K=10, T=16, stride=4)
    starts = clips[:, 0]
    assert len(set(starts.tolist())) == 10
    assert np.all(np.abs(starts + 0.5 - (np.arange(10) + 0.5) * n / 10) <= 0.5)
    assert np.array_equal(clips, (starts[:, None] + 4 * np.arange(16)) % n)
    assert video.even_clips(n, K=1, T=16, stride=4)[0, 0] == max(0, n - 60) // 2  # one clip needs no spreading

"""Files to pixels: upright RGB, or a typed reason; decoding ahead keeps order and bounds bytes."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from ovseg_batch.errors import FailureCode, RowError
from ovseg_batch.io import gif, images
from ovseg_batch.io.ahead import decode_ahead, work_ahead
from ovseg_batch.io.images import open_image, read_image, upright_size
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.pictures import read_picture
from ovseg_batch.types import ImageRow
from tests.harness.fuzz_images import pool

LIMITS = Limits(10**6, 10**7)
SAVING: dict[str, dict[str, object]] = {"png": {}, "jpeg": {"quality": 95}, "webp": {"lossless": True}}


def ramp(h: int = 20, w: int = 30) -> np.ndarray:
    red, green = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    return np.stack([red, green, np.full((h, w), 90.0)], -1).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    return read_image(path, LIMITS)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "tif" if mode == "HSV" else "png"
    source = Image.fromarray(ramp())
    if mode == "I;16":
        image = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
    else:
        image = source.convert(mode) if mode != "HSV" else source
    image.save(tmp_path / f"x.{suffix}")
    pixels = read(tmp_path / f"x.{suffix}")
    assert pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    if mode != "1":
        assert abs(float(pixels.mean()) - float(np.asarray(source.convert("L")).mean())) < 25


def test_sixteen_bits_keep_their_scale(tmp_path: Path) -> None:
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png")[..., 0].ravel().tolist() == list(range(256))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png")[:, 0, 0].tolist() == [0, 0, 255, 255]


def test_exif_rotation(tmp_path: Path) -> None:
    image = Image.fromarray(ramp())
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    image.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read(tmp_path / "x.png"), np.rot90(ramp(), -1))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "x.gif")[0, 0].tolist() == [255, 0, 0]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ramp(200, 300)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", FailureCode.EMPTY),
        (b"this is text", FailureCode.NOT_AN_IMAGE),
        (jpeg()[:-500], FailureCode.TRUNCATED),
        (jpeg()[:2000], FailureCode.TRUNCATED),
        (None, FailureCode.MISSING),
    ],
)
def test_bad_file_is_typed(tmp_path: Path, content: bytes | None, code: FailureCode) -> None:
    if content is not None:
        (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(RowError, match=r"x\.jpg") as caught:
        read(tmp_path / "x.jpg")
    assert caught.value.code == code


def test_limits(tmp_path: Path) -> None:
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    for limits, what in ((Limits(10**6, 10**7), "pixels"), (Limits(10**8, 10), "bytes")):
        with pytest.raises(RowError, match=what) as caught:
            read_image(tmp_path / "bomb.png", limits)
        assert caught.value.code == FailureCode.TOO_LARGE


def test_folder_named_like_an_image(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(RowError) as caught:
        read(tmp_path / "x.jpg")
    assert caught.value.code in (FailureCode.UNREADABLE, FailureCode.EMPTY)


def rows_of(folder: Path, count: int) -> list[ImageRow]:
    for k in range(count):
        Image.new("RGB", (100, 100), (k, k, k)).save(folder / f"{k}.png")
    return [ImageRow(k, str(k), f"{k}.png", str(folder / f"{k}.png")) for k in range(count)]


def test_decode_ahead_keeps_order_and_goes_on_after_a_bad_one(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 40)
    (tmp_path / "7.png").write_bytes(b"")
    found = list(decode_ahead(rows, 4, 1 << 20, LIMITS))
    assert [row.row for row, _ in found] == list(range(40))
    assert isinstance(found[7][1], RowError)
    assert [int(image[0, 0, 0]) for _, image in found if not isinstance(image, RowError)] == [
        k for k in range(40) if k != 7
    ]


@pytest.mark.parametrize("budget", [1, 3 * 100 * 100 * 3])
def test_decode_ahead_holds_no_more_than_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """However many threads, the images that wait are within the budget, or one alone."""
    alive, peak, lock = 0, 0, threading.Lock()
    decode = images.decode

    def counted(image: Image.Image, path: str) -> np.ndarray:
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)
        return decode(image, path)

    monkeypatch.setattr(images, "decode", counted)
    for _ in decode_ahead(rows_of(tmp_path, 30), 8, budget, LIMITS):
        with lock:
            alive -= 1
    assert peak <= max(1, budget // (100 * 100 * 3)) + 1  # the one just handed over is counted until the next


def test_a_path_that_no_file_can_have_costs_its_row(tmp_path: Path) -> None:
    with pytest.raises(RowError) as refused:
        read(tmp_path / "a\0b.png")
    assert refused.value.code is FailureCode.UNREADABLE


def test_memory_that_runs_out_in_a_thread_costs_its_row(tmp_path: Path) -> None:
    def work(row: ImageRow, image: Image.Image) -> int:
        side = 1 << 20 if row.row == 1 else 2
        return int(cv2.resize(np.zeros((1, 1), np.uint8), (side, side), interpolation=cv2.INTER_NEAREST).size)

    found = [done for _, done in work_ahead(rows_of(tmp_path, 3), work, 2, 1 << 20, LIMITS)]
    assert isinstance(found[1], RowError) and found[1].code is FailureCode.OUT_OF_MEMORY
    assert "1.png" in found[1].message and (found[0], found[2]) == (4, 4)


def test_decode_ahead_stops_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    stream = decode_ahead(rows_of(tmp_path, 30), 4, 1, LIMITS)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_flipped_bit_of_a_png_fails_before_its_size_is_known(tmp_path: Path) -> None:
    """Pillow decodes a PNG to find its EXIF. A second decoding returns what the first has left."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "PNG")
    first = whole.getvalue().index(b"IDAT") + 4
    for place in range(first, len(whole.getvalue()) - 16, 997):
        content = bytearray(whole.getvalue())
        content[place] ^= 16
        (tmp_path / "x.png").write_bytes(content)
        image = open_image(str(tmp_path / "x.png"), LIMITS)
        with pytest.raises(RowError):
            upright_size(image, "x.png")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe never answers, and a device may have no end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        for name in ("pipe.jpg", "zero.jpg", "folder.jpg", "socket.jpg"):
            with pytest.raises(RowError) as caught:
                read(tmp_path / name)
            assert caught.value.code is FailureCode.UNREADABLE, name
    (tmp_path / "proc.jpg").symlink_to("/proc/self/maps")
    with pytest.raises(RowError) as caught:
        read_image(tmp_path / "proc.jpg", Limits(10**6, 100))
    assert caught.value.code is FailureCode.TOO_LARGE


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_before_decoding_is_that_of_the_pixels(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"x.{kind}"
    Image.fromarray(ramp()).save(path, kind.upper(), exif=exif)
    expected = (30, 20) if orientation > 4 else (20, 30)
    assert upright_size(open_image(str(path), LIMITS), path) == expected == read(path).shape[:2]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_whatever_else_exif_holds(tmp_path: Path, kind: str, orientation: int) -> None:
    """Pillow's own turning writes the block again, which fails for a tag of the wrong type."""
    whole = ramp()
    turned = {
        1: whole,
        2: whole[:, ::-1],
        3: whole[::-1, ::-1],
        4: whole[::-1],
        5: whole.swapaxes(0, 1),
        6: np.rot90(whole, -1),
        7: whole[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(whole, 1),
    }[orientation]
    block = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00"  # XResolution is a text
    block += struct.pack("<HHI4s", 282, 2, 4, b"72\x00\x00") + struct.pack("<HHII", 274, 3, 1, orientation) + bytes(4)
    path = tmp_path / f"x.{kind}"
    Image.fromarray(whole).save(path, kind.upper(), exif=block, **SAVING[kind])
    found = read(path)
    assert found.shape == turned.shape and np.abs(found.astype(int) - turned).max() <= (8 if kind == "jpeg" else 0)
    assert upright_size(open_image(str(path), LIMITS), path) == found.shape[:2]


def test_a_png_may_hold_a_long_text(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("XML", "x" * (2 << 20), zip=True)
    Image.fromarray(ramp()).save(tmp_path / "x.png", pnginfo=text)
    assert np.array_equal(read(tmp_path / "x.png"), ramp())


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


def test_a_png_with_a_wrong_checksum_is_called_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "PNG")
    content = buffer.getvalue()
    (tmp_path / "x.png").write_bytes(content[:33] + chunk(b"gAMA", bytes(4), checksum=0) + content[33:])
    with pytest.raises(RowError, match="begins like a PNG file, but is damaged") as caught:
        read(tmp_path / "x.png")
    assert caught.value.code == FailureCode.BAD_IMAGE


def damaged_deep_png(colour: int) -> bytes:
    """Return a PNG of 16 bits whose pixels break off in the middle, with a right checksum."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    pixels = np.random.default_rng(0).integers(0, 65535, (20, 30 * channels)).astype(">u2")
    data = bytearray(zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    head = struct.pack(">IIBBBBB", 30, 20, 16, colour, 0, 0, 0)
    key = chunk(b"tRNS", bytes(2 * channels)) if colour < 6 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + key + chunk(b"IDAT", bytes(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour", [0, 2, 6])
def test_masks_and_edits_refuse_the_same_damaged_pixels(colour: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(damaged_deep_png(colour))
    for reading in (upright_size, images.decode, read_picture):
        with pytest.raises(RowError) as caught, open_image(str(path), LIMITS) as image:
            reading(image, path)
        assert caught.value.code in (FailureCode.BAD_IMAGE, FailureCode.TRUNCATED)


@pytest.mark.parametrize(("old", "new"), [(slice(-20, -16), b"\0\0\0\0"), (slice(-14, None), b"")])
def test_a_deep_png_with_a_wrong_checksum_or_cut_off_is_refused_when_it_is_opened(
    old: slice, new: bytes, tmp_path: Path
) -> None:
    content = bytearray(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)))
    content += chunk(b"IDAT", zlib.compress(bytes(2 * (1 + 18)))) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    assert read(tmp_path / "x.png").shape == (2, 3, 3)
    content[old] = new
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(RowError, match=r"checksum|truncated"), open_image(str(tmp_path / "x.png"), LIMITS):
        pass


@pytest.mark.parametrize("rest", [b"", b"\0", b"\0\0\0\0IEND\xaeB`\x82" + bytes(30)])
def test_what_follows_the_pixels_of_a_deep_png_decides_nothing(
    rest: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (20, 30, 3), np.uint16)
    content = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    (tmp_path / "x.png").write_bytes(content[:-12] + rest)
    with open_image(str(tmp_path / "x.png"), LIMITS) as image:
        assert np.array_equal(read_picture(image, tmp_path / "x.png").pixels, pixels)
    assert capfd.readouterr().err == ""


def test_a_narrow_jpeg_is_reduced_to_one_pixel_at_least(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 8), "white").save(tmp_path / "x.jpg")
    with open_image(str(tmp_path / "x.jpg"), LIMITS) as image:
        images.reduce(image, 100)
        assert images.decode(image, tmp_path / "x.jpg").shape == (1, 500, 3)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_tiff_with_tiles_much_larger_than_itself_is_refused(depth: type, tmp_path: Path) -> None:
    """The decoder allocates a whole tile."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((40, 56, 3), depth), tile=(16, 16), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["TileLength"].valueoffset
    content = bytearray(path.read_bytes())
    content[place : place + 2] = struct.pack("<H", 60_000)
    path.write_bytes(content)
    for reading in (images.decode, read_picture):
        with pytest.raises(RowError, match="has tiles of 16 × 60000 pixels"), open_image(str(path), LIMITS) as image:
            reading(image, path)


def test_a_damaged_file_writes_nothing_on_stderr(tmp_path: Path) -> None:
    for name, options in (("a.tif", {"compression": "tiff_adobe_deflate"}), ("b.tif", {"compression": "raw"})):
        Image.fromarray(ramp()).save(tmp_path / name, **options)
        content = bytearray((tmp_path / name).read_bytes())
        content[10:40] = b"\x77" * 30  # pixels
        (tmp_path / name).write_bytes(content if name == "a.tif" else content[:-60])  # the directory
    (tmp_path / "c.png").write_bytes(damaged_deep_png(6))
    code = """
import sys
from ovseg_batch.errors import RowError
from ovseg_batch.io.images import read_image
from ovseg_batch.io.limits import Limits
for path in sys.argv[1:]:
    try:
        read_image(path, Limits(10**6, 10**7))
    except RowError as error:
        print(error.code)
"""
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr, len(done.stdout.split())) == (0, "", 3)


@pytest.mark.parametrize("part", ["screen", "frame"])
def test_a_gif_of_any_size_is_refused_before_memory_is_taken(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("P", (8, 8), colour) for colour in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], disposal=2)
    content = bytearray(buffer.getvalue())
    place = 6 if part == "screen" else content.index(b"\x2c\0\0\0\0\x08\0\x08\0") + 5
    content[place : place + 4] = struct.pack("<HH", 60_000, 50_000)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("Pillow allocates the frame"))
    with pytest.raises(RowError, match=r"60000 × 50000 pixels") as caught:
        images.open_content(bytes(content), "x.gif", LIMITS)
    assert caught.value.code == FailureCode.TOO_LARGE


def test_the_size_of_a_gif_is_the_one_that_pillow_gives_it() -> None:
    for content in (value for name, value in pool().items() if name.endswith(".gif")):
        with Image.open(io.BytesIO(content)) as image:
            assert gif.canvas_size(content) == image.size
    assert gif.canvas_size(b"GIF89a") is None and gif.canvas_size(jpeg()) is None


def test_no_image_is_given_to_another_program(tmp_path: Path) -> None:
    """Pillow has Ghostscript draw EPS."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    assert Image.open(path).format == "EPS"
    with pytest.raises(RowError) as raised:
        read_image(path, LIMITS)
    assert raised.value.code == FailureCode.NOT_AN_IMAGE

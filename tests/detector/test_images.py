import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector import images as module
from detector.images import EXTENSIONS, FORMATS, BrokenImage, decode, resize, shrink_to

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # the module's own filter does not outlive its import in pytest

GREEN_HALF_RED = (200, 40, 20, 128)
STORED = {  # what a camera that is turned so has stored of an upright image (EXIF 2.32, orientation)
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def check(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0


# ---- what is decoded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_files_keep_every_pixel(photo, encode, format):
    pixels = photo(33, 21)
    decoded = decode(encode(pixels, format))
    check(decoded)
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_keep_nearly_all(photo, encode, format):
    pixels = photo(64, 48)
    decoded = decode(encode(pixels, format, quality=95))
    check(decoded)
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 4


def test_the_channels_are_in_the_order_red_green_blue(encode):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 250, 100
    for format in ("PNG", "JPEG"):
        np.testing.assert_allclose(decode(encode(pixels, format)).mean((0, 1)), [250, 100, 0], atol=3)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_exif_rotation_is_applied(encode, format, orientation):
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:12, :20], upright[:12, 20:], upright[12:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    decoded = decode(encode(stored, format, exif=exif(orientation), **lossless))
    assert decoded.shape == upright.shape
    np.testing.assert_allclose(decoded.astype(int), upright, atol=40)
    np.testing.assert_allclose(decoded[4:8, 4:16].mean((0, 1)), [250, 0, 0], atol=3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_rotation_is_none(photo, encode, orientation):
    np.testing.assert_array_equal(decode(encode(photo(), "PNG", exif=exif(orientation))), photo())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("metadata", [b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"?"])
def test_unreadable_metadata_cost_no_image(photo, encode, format, metadata):
    assert decode(encode(photo(), format, exif=metadata)).shape == photo().shape


@pytest.mark.parametrize(("tag", "kind"), [(0x0128, 4), (0x011A, 2), (0x010F, 11)], ids=hex)
def test_one_odd_tag_costs_neither_the_image_nor_its_rotation(photo, encode, tag, kind):
    """Beside orientation 6: ResolutionUnit as a LONG, XResolution as a text, Make as a FLOAT."""
    tags = struct.pack(">HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack(">HHI", tag, kind, 1) + b"ab\0\0"
    data = encode(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + tags + b"\0\0\0\0")
    assert decode(data).shape == (photo().shape[1], photo().shape[0], 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_to_the_metadata_costs_the_image(photo, encode, data):
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x011A], tags[0x0131] = 6, "Maker", 72.0, "software"
    tags.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0x829A: (1, 100), 0x9286: b"hello"})
    block = bytearray(tags.tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    decoded = decode(encode(photo(), "JPEG", exif=bytes(block)))
    assert sorted(decoded.shape) == sorted(photo().shape)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped_not_blended(encode, format):
    image = Image.new("RGBA", (20, 20), GREEN_HALF_RED)
    decoded = decode(encode(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {})))
    np.testing.assert_array_equal(decoded[0, 0], GREEN_HALF_RED[:3])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_becomes_three_equal_channels(photo, encode, mode):
    grey = Image.fromarray(photo()).convert("L").convert(mode)
    decoded = decode(encode(grey))
    check(decoded)
    np.testing.assert_array_equal(decoded, np.repeat(np.asarray(grey.convert("L"))[..., None], 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_palettes_are_resolved(photo, encode, format):
    indexed = Image.fromarray(photo()).quantize(16)
    np.testing.assert_array_equal(decode(encode(indexed, format)), np.asarray(indexed.convert("RGB")))


@pytest.mark.parametrize("transparency", [0, b"\0\x80\xff"])
def test_transparent_palettes_keep_their_colours(photo, encode, transparency):
    indexed = Image.fromarray(photo()).quantize(16)
    decoded = decode(encode(indexed, "PNG", transparency=transparency))
    np.testing.assert_array_equal(decoded, np.asarray(indexed.convert("RGB")))


def test_cmyk_jpegs_come_out_in_colour(encode):
    cmyk = Image.new("RGB", (32, 32), (220, 60, 30)).convert("CMYK")
    np.testing.assert_allclose(decode(encode(cmyk, "JPEG", quality=98))[8, 8], (220, 60, 30), atol=8)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(encode, format):
    deep = np.array([[0, 255, 256, 32768], [40000, 65279, 65280, 65535]], np.uint16)
    decoded = decode(encode(Image.fromarray(deep), format))
    check(decoded)
    np.testing.assert_array_equal(decoded[..., 0], deep >> 8)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_sixteen_bits_are_rotated_too(encode):
    deep = (np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000).astype(np.uint16)
    decoded = decode(encode(Image.fromarray(deep), "PNG", exif=exif(6)))
    np.testing.assert_array_equal(decoded[..., 0], np.rot90(deep >> 8, -1))


def test_sixteen_bit_colour_is_scaled_to_eight():
    row = struct.pack(">6H", 65535, 32768, 0, 256, 511, 65279)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" + row)) + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(data)[0], [[255, 128, 0], [1, 1, 254]])


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(encode, format):
    first, second = (Image.new("RGB", (24, 16), colour) for colour in ("#e01010", "#1010e0"))
    data = encode(first, format, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    np.testing.assert_allclose(decode(data)[8, 8], (0xE0, 0x10, 0x10), atol=6)


def test_one_pixel(encode):
    assert decode(encode(np.full((1, 1, 3), 7, np.uint8))).tolist() == [[[7, 7, 7]]]


def test_the_same_bytes_give_the_same_pixels_in_an_array_of_ones_own(photo, encode):
    data = encode(photo(), "JPEG")
    first, second = decode(data), decode(data)
    np.testing.assert_array_equal(first, second)
    first[:] = 0  # writable
    assert second.any()


def test_the_extensions_are_those_of_the_formats():
    Image.init()
    for extension in EXTENSIONS:
        assert Image.EXTENSION[extension] in FORMATS


# ---- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text that somebody named .jpg\n", "not an image"),
        (b"\xff\xd8\xff", "not an image|cut short"),
        (b"\x89PNG\r\n\x1a\n", "not an image|cut short"),
        (b"\0" * 10_000, "not an image"),
        (b"GIF89a", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_image_is_refused(data, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode(data)


def test_other_formats_of_the_decoder_are_refused(photo, encode):
    for format in ("PPM", "ICO", "TGA", "PCX", "ICNS"):
        with pytest.raises(BrokenImage, match="unknown format"):
            decode(encode(photo(64, 64), format))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(photo, encode, format, kept):
    data = encode(photo(96, 96), format)
    with pytest.raises(BrokenImage):
        decode(data[: int(len(data) * kept)])


def test_truncation_is_one_reason_however_much_is_missing(photo, encode):
    data = {format: encode(photo(96, 96), format) for format in ("JPEG", "PNG")}
    reasons = set()
    for format, kept in (("JPEG", 0.5), ("JPEG", 0.7), ("JPEG", 0.9), ("PNG", 0.5), ("PNG", 0.8)):
        with pytest.raises(BrokenImage) as caught:
            decode(data[format][: int(len(data[format]) * kept)])
        reasons.add(str(caught.value))
    assert reasons == {"cut short"}


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_small_file_that_claims_to_be_huge_is_refused_unread(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    with pytest.raises(BrokenImage, match=r"more than 100,000,000"):
        decode(data)


def test_the_limit_itself_is_decoded(monkeypatch, encode, photo):
    monkeypatch.setattr(module, "MAX_PIXELS", 40 * 56)
    assert decode(encode(photo(40, 56))).shape == (40, 56, 3)
    with pytest.raises(BrokenImage, match="56 x 41 pixels"):
        decode(encode(photo(41, 56)))


def tiled(side: int) -> bytes:
    """A TIFF of 1 x 1 pixel in one grey tile of `side` x `side`, packed by deflate."""
    data = zlib.compress(bytes(side * side), 9)
    fields = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    directory = struct.pack("<H", len(fields)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def test_a_small_tiff_with_a_huge_tile_is_refused(monkeypatch):
    assert decode(tiled(256)).shape == (1, 1, 3)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000 * 1000)
    with pytest.raises(BrokenImage, match="a TIFF with tiles of more than 1,000,000 pixels"):
        decode(tiled(1024))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size):
    gif = b"GIF89a" + struct.pack("<HH", *size) + b"\x80\0\0\0\0\0\xff\xff\xff\x2c" + struct.pack("<HHHH", 0, 0, *size)
    bmp = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, *size, 1, 24, 0, 4, 0, 0, 0, 0)
    for data in (gif + b"\0\x02\x02\x4c\x01\0\x3b", bmp + b"\0\0\0\0"):
        with pytest.raises(BrokenImage):
            decode(data)


@pytest.fixture(scope="module")
def valid_files(photo, encode) -> list[bytes]:
    pixels = photo(24, 32)
    files = [encode(pixels, format) for format in FORMATS]
    files.append(encode(pixels, "JPEG", exif=exif(6), progressive=True))
    files.append(encode(Image.fromarray(pixels).convert("RGBA"), "PNG"))
    files.append(encode(Image.fromarray(pixels).quantize(8), "PNG", transparency=b"\0\x80"))
    files.append(encode(pixels, "TIFF", compression="tiff_lzw"))
    files.append(encode(pixels, "GIF", save_all=True, append_images=[Image.new("RGB", (32, 24))]))
    return files


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_files_are_decoded_or_broken_and_nothing_else(valid_files, data):
    mutated = bytearray(data.draw(st.sampled_from(valid_files)))
    # Most of what matters is at the beginning.
    position = st.one_of(st.integers(0, min(200, len(mutated) - 1)), st.integers(0, len(mutated) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        at = min(data.draw(position), len(mutated) - 1)
        match data.draw(st.integers(0, 3)):
            case 0 | 1:
                mutated[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255])))
            case 2:
                mutated[at:at] = data.draw(st.binary(max_size=8))
            case 3:
                del mutated[at : at + data.draw(st.integers(1, 40))]
        if not mutated:
            break
    try:
        check(decode(bytes(mutated)))
    except BrokenImage as broken:
        reason = str(broken)
        assert reason and len(reason) <= 200 and len(reason.splitlines()) == 1
        assert "0x" not in reason  # no memory address: the same file gives the same summary


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_at_all(data):
    with pytest.raises(BrokenImage):
        decode(data)


def test_pillows_warnings_are_silenced_and_no_others(photo, encode, tmp_path):
    (tmp_path / "warned.png").write_bytes(encode(Image.fromarray(photo()).quantize(4), transparency=b"\0\x80"))
    program = f"""
import threading, warnings
from pathlib import Path
from detector.images import decode
data = Path({str(tmp_path / "warned.png")!r}).read_bytes()
before = list(warnings.filters)
threads = [threading.Thread(target=lambda: [decode(data) for _ in range(50)]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert warnings.filters == before
warnings.warn("mine")
"""
    python, root = [sys.executable, "-W", "default"], Path(module.__file__).parents[1]
    done = subprocess.run([*python, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert "UserWarning: mine" in done.stderr and len(done.stderr.splitlines()) == 1


# ---- scaling ---------------------------------------------------------------------------------------------------


def test_an_image_of_the_right_size_is_not_touched(photo):
    pixels = photo(96, 96)
    assert resize(pixels, 96) is pixels
    assert shrink_to(pixels, 96) is pixels
    assert shrink_to(pixels, 200) is pixels


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 128), colour=st.integers(0, 255))
def test_resize_gives_a_square_and_keeps_a_flat_colour(height, width, size, colour):
    scaled = resize(np.full((height, width, 3), colour, np.uint8), size)
    assert scaled.shape == (size, size, 3) and scaled.dtype == np.uint8
    assert (scaled == colour).all()


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), side=st.integers(1, 128))
def test_shrink_to_keeps_the_shape(height, width, side):
    scaled = shrink_to(np.zeros((height, width, 3), np.uint8), side)
    assert scaled.ndim == 3 and min(scaled.shape) >= 1
    assert max(scaled.shape[:2]) == min(side, max(height, width))
    if max(height, width) > side:
        for new, old in zip(scaled.shape[:2], (height, width), strict=True):
            assert abs(new - max(1, old * side / max(height, width))) <= 0.5


def test_scaling_down_averages_areas():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert set(np.unique(resize(board, 16))) <= {127, 128}
    assert set(np.unique(shrink_to(board, 16))) <= {127, 128}


def test_scaling_rings_nowhere():
    edge = np.full((50, 50, 3), 60, np.uint8)
    edge[:, 25:] = 200
    for size in (20, 96):
        assert resize(edge, size).min() == 60 and resize(edge, size).max() == 200


@pytest.mark.parametrize("shape", [(1, 1), (1, 70_000), (70_000, 1), (2, 40_000)])
def test_extreme_shapes(shape):
    assert resize(np.zeros((*shape, 3), np.uint8), 71).shape == (71, 71, 3)
    assert max(shrink_to(np.zeros((*shape, 3), np.uint8), 1024).shape) <= 1024


@pytest.mark.parametrize("multi_picture", [False, True])
def test_a_jpeg_of_more_scans_than_any_photograph_is_refused(photo, encode, multi_picture, monkeypatch):
    progressive = encode(photo(64, 64), "JPEG", progressive=True)
    start = progressive.index(b"\xff\xda")
    end = progressive.index(b"\xff\xda", start + 2)
    bomb = progressive[:start] + progressive[start:end] * 200 + progressive[end:]
    if multi_picture:  # what Pillow calls MPO, by a segment that any JPEG may carry
        first = encode(photo(64, 64), "JPEG")
        index = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 2)
        index += struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 1) + bytes(4)
        segment = b"MPF\0" + index
        bomb = bomb[:2] + b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment + bomb[2:]
        assert decode(first).shape == (64, 64, 3)
    with pytest.raises(BrokenImage, match="scans"):
        decode(bomb)
    assert decode(progressive).shape == (64, 64, 3)

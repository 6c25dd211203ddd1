"""Pictures by name: every form that is read, and one line about every one that is not."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from moram_dist.data import picture_bytes, picture_files
from moram_dist.data.picture_files import open_picture
from moram_dist.registry import InputError
from tests.helpers.picture_files import encoded, noise, refused, same, write_parquet


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF"])
def test_a_picture_of_colours(tmp_path, form):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(encoded(noise(7, 5), form))  # its name does not matter
    same(open_picture(tmp_path, "a/b.jpg"), noise(7, 5))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_a_picture_with_losses(tmp_path, form):
    flat = Image.new("RGB", (20, 10), (200, 100, 50))
    (tmp_path / "a").write_bytes(encoded(flat, form))
    difference = np.abs(np.asarray(open_picture(tmp_path, "a"), int) - np.asarray(flat)).max()
    assert difference <= 3


def test_grey_and_black_and_white(tmp_path):
    picture = noise(7, 5).convert("L")
    picture.save(tmp_path / "a.png")
    same(open_picture(tmp_path, "a.png"), np.stack([np.asarray(picture)] * 3, 2))
    picture.convert("1").save(tmp_path / "b.png")
    assert {*np.asarray(open_picture(tmp_path, "b.png")).flat} == {0, 255}


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 200, 25))])
def test_a_palette(tmp_path, transparency, recwarn):
    """Whichever of its colours are transparent."""
    picture = noise(7, 5).quantize(8)
    options = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "a.png", **options)
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    same(open_picture(tmp_path, "a.png"), palette[np.asarray(picture)])
    assert not recwarn.list


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled(tmp_path, form):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    (tmp_path / "a").write_bytes(encoded(Image.fromarray(values), form))
    expected = np.array([[0, 0, 1], [128, 254, 255]])
    same(open_picture(tmp_path, "a"), np.stack([expected] * 3, 2))


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def test_colours_of_16_bits(tmp_path):
    """PIL writes none, so this one is written by hand."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0, 257, 65535, 32768, 255, 256)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    same(open_picture(tmp_path, "a.png"), [[[0, 1, 255], [128, 0, 1]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path, mode):
    picture = noise(7, 5).convert(mode)
    picture.putalpha(Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)))
    picture.save(tmp_path / "a.png")
    same(open_picture(tmp_path, "a.png"), noise(7, 5).convert(mode[:-1]).convert("RGB"))


def test_cmyk(tmp_path):
    flat = Image.new("CMYK", (16, 16), (0, 155, 205, 0))
    flat.save(tmp_path / "a.jpg", quality=95)
    found = np.asarray(open_picture(tmp_path, "a.jpg"), int)
    assert np.abs(found - (255, 100, 50)).max() <= 3


def test_rotation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(7, 5).save(tmp_path / "a.png", exif=exif)
    same(open_picture(tmp_path, "a.png"), noise(7, 5))


def test_the_first_frame(tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    same(open_picture(tmp_path, "a.gif"), first)


def test_what_looks_like_a_row_may_be_a_name(tmp_path):
    noise(7, 5).save(tmp_path / "cat#3.png")
    same(open_picture(tmp_path, "cat#3.png"), noise(7, 5))


@pytest.mark.parametrize("name", ["../a.png", "b/../../a.png", "b/..", "../a.parquet#0"])
def test_a_name_may_not_leave_the_folder(tmp_path, name):
    (tmp_path / "folder" / "b").mkdir(parents=True)
    noise(4, 4).save(tmp_path / "a.png")
    write_parquet(tmp_path / "a.parquet", [encoded(noise(4, 4))])
    assert refused(tmp_path / "folder", name) == "a picture's name may not leave its folder"
    assert "may not leave" in refused(tmp_path / "folder", str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    "name", ["a.png", "a.bin#0", "a-idx3-ubyte.gz#1", "a.parquet#1", "a.png#1"]
)
def test_a_missing_file(tmp_path, name):
    assert refused(tmp_path, name) == "cannot be read: No such file or directory"


def test_what_is_no_file(tmp_path):
    (tmp_path / "a.parquet").mkdir()
    os.mkfifo(tmp_path / "b")
    for name in ("", ".", "a.parquet", "a.parquet#0", "b"):
        with pytest.raises(InputError, match="is no file but a folder, device, pipe or socket"):
            open_picture(tmp_path, name)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800", "a" * 5000, "a\0.parquet#0"])
def test_names_that_no_file_has(tmp_path, name):
    with pytest.raises(InputError) as error:
        open_picture(tmp_path, name)
    assert str(error.value).isprintable() and str(tmp_path) in str(error.value)


def test_pictures_that_cannot_be_read(tmp_path):
    whole = encoded(noise(60, 60))
    for name, content, said in (
        ("empty", b"", "is empty"),
        ("text", b"<html>", "not a picture, or damaged; read are BMP, GIF, JPEG, PNG"),
        ("cut", whole[: len(whole) // 2], "cannot be read: "),
        ("cut.jpg", encoded(noise(60, 60), "JPEG")[:-900], "cannot be read: image file is tr"),
        ("floats", encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point numbers"),
        ("program", encoded(noise(4, 4), "EPS"), "not a picture"),
    ):
        (tmp_path / name).write_bytes(content)
        assert said in refused(tmp_path, name)


def claiming(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs(tmp_path, size):
    (tmp_path / "a.png").write_bytes(claiming(*size))
    assert "pixels" in refused(tmp_path, "a.png")


def test_elongated_pictures(tmp_path):
    noise(100, 1).save(tmp_path / "a.png")
    same(open_picture(tmp_path, "a.png"), noise(100, 1))
    noise(1, 101).save(tmp_path / "a.png")
    assert refused(tmp_path, "a.png") == "1 x 101 pixels, over 100 times as long as wide"


def test_a_file_too_large_for_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MOST_BYTES", 10)
    noise(4, 4).save(tmp_path / "a.png")
    assert "10 are the most of a picture" in refused(tmp_path, "a.png")


def test_a_broken_disk_is_no_mistake_in_a_picture(tmp_path, monkeypatch):
    def broken(path):
        raise OSError(5, "Input/output error", str(path))

    noise(4, 4).save(tmp_path / "a.png")
    monkeypatch.setattr(picture_files, "_read", broken)
    with pytest.raises(OSError, match="Input/output error"):
        open_picture(tmp_path, "a.png")


def wholes():
    """One file of each form, small enough that a changed byte matters."""
    picture = noise(12, 9)
    sixteen = Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10) * 600)
    return [
        encoded(picture),
        encoded(picture.quantize(8), transparency=3),
        encoded(sixteen),
        encoded(picture, "JPEG"),
        encoded(picture, "JPEG", progressive=True),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture, "GIF"),
        encoded(picture, "WEBP"),
        encoded(picture, "BMP"),
        encoded(picture, "PPM"),
        encoded(picture, "TIFF"),
        encoded(picture, "TIFF", compression="tiff_lzw"),
    ]


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_open_or_are_refused(tmp_path):
    files, rng, opened = wholes(), np.random.default_rng(0), 0
    for trial in range(300):
        content = bytearray(files[trial % len(files)])
        for _ in range(rng.integers(0, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        if rng.random() < 0.3:
            del content[rng.integers(len(content)) :]
        (tmp_path / "a").write_bytes(content)
        try:
            found = open_picture(tmp_path, "a")
        except InputError as error:
            assert str(error).isprintable() and str(error).startswith(str(tmp_path / "a"))
        else:
            opened += 1
            assert found.mode == "RGB"
            assert found.width * found.height <= picture_bytes.MOST_PIXELS
    assert 100 < opened < 290

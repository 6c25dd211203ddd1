"""Pictures in files that hold many: every row, and one line about what is no such file."""

from __future__ import annotations

import gzip
import os
import struct
import threading

import numpy as np
import pytest

from moram_dist.data import picture_files, picture_rows
from moram_dist.data.picture_files import PictureFolder, open_picture
from moram_dist.registry import InputError
from tests.helpers.picture_files import (
    encoded,
    noise,
    refused,
    same,
    write_cifar,
    write_idx,
    write_parquet,
)


@pytest.fixture
def grey():
    return np.random.default_rng(1).integers(0, 256, (5, 4, 6), np.uint8)


@pytest.fixture
def colours():
    return np.random.default_rng(2).integers(0, 256, (5, 3, 32, 32), np.uint8)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"])
def test_rows_of_an_idx_file(tmp_path, grey, name):
    write_idx(tmp_path / name, grey)
    folder = PictureFolder(tmp_path)
    for row in (4, 0, 2):
        same(folder.open(f"{name}#{row}"), np.stack([grey[row]] * 3, 2))
    assert refused(tmp_path, f"{name}#5") == "the file has 5 rows, counted from 0"


@pytest.mark.parametrize(("name", "labels"), [("data_batch_1.bin", 1), ("train.bin", 2)])
def test_rows_of_cifar(tmp_path, colours, name, labels):
    write_cifar(tmp_path / name, colours, labels)
    for row in (4, 0):
        same(open_picture(tmp_path, f"{name}#{row}"), colours[row].transpose(1, 2, 0))
    assert "the file has 5 rows" in refused(tmp_path, f"{name}#5")


def test_a_size_that_fits_both_cifars_is_told_by_the_name(tmp_path):
    """3,074 rows of 3,073 bytes, or the other way round."""
    content = bytes(3073) * 3074
    for name, count in (("test_batch.bin", 3074), ("test.bin", 3073)):
        (tmp_path / name).write_bytes(content)
        assert f"the file has {count} rows" in refused(tmp_path, f"{name}#9999")


def test_rows_of_parquet(tmp_path):
    pictures = [noise(4 + i, 5, i) for i in range(8)]
    write_parquet(tmp_path / "a.parquet", [*map(encoded, pictures), b"", None])
    folder = PictureFolder(tmp_path)
    for row in (7, 0, 3, 2, 6, 1):
        same(folder.open(f"a.parquet#{row}"), pictures[row])
    assert refused(tmp_path, "a.parquet#8") == "is empty"
    assert "the row holds no picture" in refused(tmp_path, "a.parquet#9")
    assert refused(tmp_path, "a.parquet#10") == "the file has 10 rows, counted from 0"


def test_the_column_of_parquet(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    def write(**columns):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        made = {
            name: pa.array([{"bytes": encoded(picture), "path": None}], kind)
            for name, picture in columns.items()
        }
        parquet.write_table(pa.table({"text": ["x"], **made}), tmp_path / "a.parquet")

    write(img=noise(4, 4), mask=noise(4, 4, 1))
    same(open_picture(tmp_path, "a.parquet#0"), noise(4, 4))
    write(mask=noise(4, 4, 1), image=noise(4, 4), imagenet=noise(4, 4, 2))
    same(open_picture(tmp_path, "a.parquet#0"), noise(4, 4))
    write()
    assert refused(tmp_path, "a.parquet#0") == "no column holds pictures as {bytes, path}"


def test_files_stay_open_but_not_all_of_them(tmp_path, grey, monkeypatch):
    opened = []

    def noted(path):
        opened.append(path.name[0])
        return picture_rows.open_rows(path)

    monkeypatch.setattr(picture_files, "open_rows", noted)
    folder = PictureFolder(tmp_path)
    for letter in "abcdefg":
        write_idx(tmp_path / f"{letter}-idx3-ubyte.gz", grey)
        for row in (0, 1, 2):
            folder.open(f"{letter}-idx3-ubyte.gz#{row}")
    assert opened == [*"abcdefg"]
    folder.open("g-idx3-ubyte.gz#3")
    folder.open("a-idx3-ubyte.gz#3")
    assert opened == [*"abcdefga"]


def test_row_groups_of_parquet_are_read_once(tmp_path, monkeypatch):
    read = []
    whole = picture_rows.ParquetRows._read_group

    def noted(rows, index):
        read.append(index)
        return whole(rows, index)

    monkeypatch.setattr(picture_rows.ParquetRows, "_read_group", noted)
    write_parquet(tmp_path / "a.parquet", [encoded(noise(4, 4, i)) for i in range(9)])
    folder = PictureFolder(tmp_path)
    for row in (0, 1, 3, 2, 4, 5, 6, 8, 7):
        folder.open(f"a.parquet#{row}")
    assert read == [0, 1, 2]


def test_many_threads_may_ask(tmp_path, grey):
    write_idx(tmp_path / "a-idx3-ubyte.gz", grey)
    pictures = [noise(9, 9, i) for i in range(9)]
    write_parquet(tmp_path / "a.parquet", [*map(encoded, pictures)])
    folder, wrong = PictureFolder(tmp_path), []

    def ask(seed):
        try:
            for row in np.random.default_rng(seed).integers(0, 9, 40):
                same(folder.open(f"a.parquet#{row}"), pictures[row])
                same(folder.open(f"a-idx3-ubyte.gz#{row % 5}"), np.stack([grey[row % 5]] * 3, 2))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_idx_files_that_are_none(tmp_path, grey, monkeypatch):
    header = struct.pack(">HBB3I", 0, 8, 3, 5, 4, 6)
    for content, said in (
        (b"", "shorter than the header"),
        (header[:10], "shorter than the header"),
        (struct.pack(">HBBI", 0, 8, 1, 9) + bytes(9), "not an idx file of pictures"),
        (header + bytes(119), "fewer bytes than the 136 of which its header speaks"),
        (header + bytes(121), "more bytes than the 136 of which its header speaks"),
        (struct.pack(">HBB3I", 0, 8, 3, 5, 0, 6), "has no pixels"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**16, 2**16), "the most are"),
    ):
        for name, form in (("a-idx3-ubyte", bytes), ("a-idx3-ubyte.gz", gzip.compress)):
            (tmp_path / name).write_bytes(form(content))
            assert said in refused(tmp_path, f"{name}#0")
    write_idx(tmp_path / "a-idx3-ubyte.gz", grey)
    (tmp_path / "a-idx3-ubyte.gz").write_bytes((tmp_path / "a-idx3-ubyte.gz").read_bytes()[:-20])
    assert refused(tmp_path, "a-idx3-ubyte.gz#0").startswith("cannot be read: EOFError")
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(b"no gzip")
    assert refused(tmp_path, "a-idx3-ubyte.gz#0").startswith("cannot be read: Not a gzipped file")
    monkeypatch.setattr(picture_rows, "MOST_UNPACKED", 100)
    write_idx(tmp_path / "a-idx3-ubyte.gz", grey)
    assert "136 bytes unpacked, and 100 are the most" in refused(tmp_path, "a-idx3-ubyte.gz#0")


def test_a_file_that_shrinks_while_it_is_open(tmp_path, grey):
    write_idx(tmp_path / "a-idx3-ubyte", grey)
    folder = PictureFolder(tmp_path)
    folder.open("a-idx3-ubyte#4")
    os.truncate(tmp_path / "a-idx3-ubyte", 100)
    with pytest.raises(InputError, match="a-idx3-ubyte#4: cannot be read"):
        folder.open("a-idx3-ubyte#4")


def test_cifar_and_parquet_files_that_are_none(tmp_path):
    for size in (0, 3072, 3075):
        (tmp_path / "a.bin").write_bytes(bytes(size))
        assert "a row of CIFAR-10 has 3,073, of CIFAR-100 3,074" in refused(tmp_path, "a.bin#0")
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "a.parquet").write_bytes(content)
        assert refused(tmp_path, "a.parquet#0").startswith("cannot be read: ")

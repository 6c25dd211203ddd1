"""Labels inside idx, CIFAR and parquet files; folders of classes; what is not read."""

from __future__ import annotations

import gzip
import random
import struct
import sys

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks.pictures.picture_set import Picture, complete
from moram_dist.tasks.pictures.shapes import holds_no_data, read_shape
from tests.helpers.picture_sets import ANIMALS, class_folders, idx, parquet, touch, write


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_idx(tmp_path, packed, test):
    raw = tmp_path / "MNIST" / "raw"
    idx(raw, "train", b"\1\0\1", packed=packed)
    idx(raw, test, b"\0", packed=packed)
    found = complete(read_shape(tmp_path), ANIMALS)
    suffix = ".gz" if packed else ""
    assert found.folder == raw
    assert found.train[2] == Picture(f"train-images-idx3-ubyte{suffix}#2", 1)
    assert found.test == (Picture(f"{test}-images-idx3-ubyte{suffix}#0", 0),)
    with pytest.raises(InputError, match="holds no class names; list them as 'classes'"):
        complete(read_shape(tmp_path))
    with pytest.raises(InputError, match="train picture 0 has label 1, which has no name"):
        complete(read_shape(tmp_path), ("cat",))


def test_idx_beside_its_archive_is_read_unpacked(tmp_path):
    for packed in (False, True):
        idx(tmp_path, "train", b"\0", packed=packed)
        idx(tmp_path, "t10k", b"\0", packed=packed)
    assert read_shape(tmp_path).train == (Picture("train-images-idx3-ubyte#0", 0),)


def test_idx_of_two_data_sets(tmp_path):
    for name in ("letters-train", "digits-train", "letters-test"):
        idx(tmp_path, name, b"\0")
    with pytest.raises(
        InputError, match="expected one file of train pictures in idx format; found"
    ):
        read_shape(tmp_path)


BAD_IDX = [
    ("train-labels-idx1-ubyte", struct.pack(">2I", 2049, 2) + b"\0\1", "2 labels, but .* 3 pict"),
    ("train-labels-idx1-ubyte", struct.pack(">2I", 2049, 3) + b"\0", "ends after 1 of 3 labels"),
    ("train-labels-idx1-ubyte", b"", "not an idx file of labels"),
    ("train-labels-idx1-ubyte", struct.pack(">2I", 2051, 3) + b"\0\0\0", "not an idx file of lab"),
    ("train-images-idx3-ubyte", b"\0" * 16, "not an idx file of pictures"),
    ("train-images-idx3-ubyte", struct.pack(">4I", 2051, 3, 2, 2), "need 28 bytes, but .* has 16"),
]


@pytest.mark.parametrize(("file", "content", "message"), BAD_IDX)
def test_damaged_idx(tmp_path, file, content, message):
    idx(tmp_path, "train", b"\1\0\1")
    idx(tmp_path, "t10k", b"\0")
    write(tmp_path / file, content)
    with pytest.raises(InputError, match=message):
        read_shape(tmp_path)


def test_missing_and_damaged_archives(tmp_path):
    idx(tmp_path, "train", b"\1\0\1", packed=True)
    with pytest.raises(InputError, match="expected one file of test pictures"):
        read_shape(tmp_path)
    idx(tmp_path, "t10k", b"\0", packed=True)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    for content in (gzip.compress(b"x" * 100)[:20], b"not packed", b""):
        labels.write_bytes(content)
        with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz: "):
            read_shape(tmp_path)
    labels.unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte: no such file"):
        read_shape(tmp_path)


def record(*labels):
    return bytes(labels) + bytes(3072)


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    write(folder / "fine_label_names.txt", "cat\ndog\n\n")
    write(folder / "train.bin", record(9, 0) + record(9, 1) + record(8, 0))
    write(folder / "test.bin", record(9, 1))
    found = complete(read_shape(tmp_path))
    assert (found.folder, found.names) == (folder, ANIMALS)
    assert [p.label for p in found.train] == [0, 1, 0]  # the fine label, not 9
    assert found.test == (Picture("test.bin#0", 1),)
    write(folder / "test.bin", record(9, 1)[:-1])
    with pytest.raises(InputError, match=r"test.bin: 3073 bytes are not whole records of 3074"):
        read_shape(tmp_path)
    write(folder / "test.bin", b"")
    with pytest.raises(InputError, match=r"test.bin: cannot be read"):
        read_shape(tmp_path)
    (folder / "test.bin").unlink()
    with pytest.raises(InputError, match=r"test.bin: no such file"):
        read_shape(tmp_path)


def test_cifar10(tmp_path):
    write(tmp_path / "batches.meta.txt", "cat\ndog\n")
    write(tmp_path / "test_batch.bin", record(1))
    with pytest.raises(InputError, match=r"no data_batch_1.bin; found: batches.meta.txt, test"):
        read_shape(tmp_path)
    write(tmp_path / "data_batch_1.bin", record(0) + record(1))
    write(tmp_path / "data_batch_2.bin", record(1))
    found = complete(read_shape(tmp_path))
    assert [p.name for p in found.train][1:] == ["data_batch_1.bin#1", "data_batch_2.bin#0"]


@pytest.mark.parametrize(
    ("column", "image"), [("label", "image"), ("fine_label", "img"), ("breed", "picture")]
)
def test_parquet(tmp_path, column, image):
    data = tmp_path / "data"
    fields = {"column": column, "image": image}
    parquet(data / "train-00000-of-00002-ab.parquet", [0, 1], **fields)
    parquet(data / "train-00001-of-00002-ab.parquet", [1], **fields)
    parquet(data / "test-00000-of-00001.parquet", [0], **fields)
    found = complete(read_shape(tmp_path))
    assert found.names == ANIMALS
    assert found.train[2] == Picture("data/train-00001-of-00002-ab.parquet#0", 1)
    assert found.notes == ()


def test_parquet_by_folder_and_validation_as_test(tmp_path):
    parquet(tmp_path / "default" / "train" / "0000.parquet", [0, 1])
    with pytest.raises(InputError, match=r"no parquet file for test; found: 0000\.parquet"):
        read_shape(tmp_path)
    parquet(tmp_path / "default" / "validation" / "0000.parquet", [1])
    found = complete(read_shape(tmp_path))
    assert found.test == (Picture("default/validation/0000.parquet#0", 1),)
    assert found.notes == ("tested on the validation split, as there is no test split",)


def test_bad_parquet(tmp_path):
    import pyarrow as pa

    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    parquet(train, [0, 1])

    def refused(message, *labels, **fields):
        parquet(test, list(labels or [0]), **fields)
        with pytest.raises(InputError, match=message):
            complete(read_shape(tmp_path))

    refused("test picture 0 has label -1, which has no name", -1)
    refused("test.parquet, row 0: no label in column 'label'", None)
    refused("has other class names than the files before", names=("dog", "cat"))
    two = {"b": pa.array([1])}
    refused("no column 'label' of whole numbers; found: image, a, b", names=(), column="a", **two)
    pa.parquet.write_table(pa.table({"label": [1], "image": ["path"]}), test)
    with pytest.raises(InputError, match="no column of pictures, a struct of bytes and path"):
        read_shape(tmp_path)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    only_paths = pa.array([{"bytes": None, "path": "x.jpg"}], kind)
    pa.parquet.write_table(pa.table({"label": [1], "image": only_paths}), test)
    with pytest.raises(InputError, match="pictures are only paths to other files"):
        read_shape(tmp_path)
    test.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"test.parquet: not a parquet file"):
        read_shape(tmp_path)


def test_damaged_parquet_is_one_line(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1])
    parquet(tmp_path / "test.parquet", [0])
    whole = (tmp_path / "test.parquet").read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        length = rng.randrange(len(whole))
        damaged = whole[:length] + rng.choice([b"", whole[-8:], bytes(len(whole) - length)])
        (tmp_path / "test.parquet").write_bytes(damaged)
        try:
            complete(read_shape(tmp_path))
        except InputError as error:
            assert str(tmp_path) in str(error)


def test_parquet_without_its_package(tmp_path, monkeypatch):
    parquet(tmp_path / "train.parquet", [0, 1])
    parquet(tmp_path / "test.parquet", [0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="parquet files need a package: pip install pyarrow"):
        read_shape(tmp_path)


def test_class_folders(tmp_path):
    class_folders(tmp_path)
    touch(tmp_path / "train" / "cat", (".hidden.jpg", "notes.txt", "B.JPEG"))
    found = complete(read_shape(tmp_path))
    assert (found.folder, found.names) == (tmp_path, ANIMALS)
    assert [p.name for p in found.train][:4] == [f"train/cat/{x}.jpg" for x in (0, 1, 2)] + [
        "train/cat/B.JPEG"
    ]
    assert found.test[-1] == Picture("test/dog/1.jpg", 1)


def test_class_folders_with_mistakes(tmp_path):
    class_folders(tmp_path)
    touch(tmp_path / "test" / "cow", ("1.jpg",))
    with pytest.raises(InputError, match="class 1, 'cow', has no training pictures"):
        complete(read_shape(tmp_path))
    (tmp_path / "train" / "cow" / "deeper").mkdir(parents=True)
    with pytest.raises(InputError, match="train/cow: class without pictures; found: deeper"):
        read_shape(tmp_path)


@pytest.mark.parametrize("folder", ["Training", "valid"])
def test_names_of_split_folders(tmp_path, folder):
    class_folders(tmp_path)
    (tmp_path / ("train" if folder == "Training" else "test")).rename(tmp_path / folder)
    assert bool(complete(read_shape(tmp_path)).notes) == (folder == "valid")


def test_a_name_that_is_not_utf8(tmp_path):
    class_folders(tmp_path)
    touch(tmp_path / "train" / "cat", ("a\udcff.jpg",))
    with pytest.raises(InputError, match=r"the file name 'train/cat/a\\udcff.jpg' is not UTF-8"):
        complete(read_shape(tmp_path))


REFUSED = [
    (
        "cifar-100-python/train",
        "train: a pickle is not read, as loading it would run code; for CIF",
    ),
    ("cifar-10-batches-py/data_batch_1", "data_batch_1: a pickle is not read"),
    ("pictures.pkl", r"pictures.pkl: a pickle is not read"),
    ("train/data-00000-of-00001.arrow", r"Arrow files of save_to_disk are not read; write parquet"),
    ("imagelabels.mat", "imagelabels.mat: MATLAB files are not read"),
    ("trian/cat/1.jpg", "no pictures in a known form, such as .*; found: trian"),
]


@pytest.mark.parametrize(("file", "message"), REFUSED)
def test_what_is_not_read(tmp_path, file, message):
    touch(tmp_path, (file,))
    assert not holds_no_data(tmp_path)
    with pytest.raises(InputError, match=message):
        read_shape(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="none: cannot be listed: No such file"):
        read_shape(tmp_path / "none")

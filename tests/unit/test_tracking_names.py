"""Names in MLflow that stay apart, and addresses that can be a store's."""

from __future__ import annotations

import itertools
import sqlite3
import string

import pytest
from mlflow.utils import validation

from moram_dist.redaction import HIDDEN
from moram_dist.registry import InputError
from moram_dist.tracking import addresses, store_of
from moram_dist.tracking.addresses import check, sqlite_address, sqlite_file
from moram_dist.tracking.names import (
    MAX_NAME,
    allowed_name,
    experiment_name,
    model_name,
    run_name,
    text,
)

LOSING = [
    *("news 1", "news#1", "news:1", "news?1", "news%1", "news\n1", "news\t1", "news\x001"),
    *("a//b", "a/b/", "/a/b", "./a/b", "a/./b", "a/../b", "../a/b", "a/b/..", "a\\b"),
    *(
        ".",
        "..",
        "...",
        "..a",
        "",
        "/",
        "//",
        "中文",
        "英文",
        "é",
        "e\u0301",
        "\udcff",
        "\udcfe",
        " a",
        "a ",
    ),
    *("x" * 251, "x" * 252, "x" * 250 + "é", "'", '"', "`", "*", "a\u200bb"),
]
WHOLE = ["news_1", "C-STANCE", "train/loss", "a.b", "x" * 250, ".a", "a..", "a/b", "a/.hidden"]


def test_different_names_stay_different_and_mlflow_takes_them():
    names = [*LOSING, *WHOLE, *(f"a{c}b" for c in string.punctuation)]
    names = list(dict.fromkeys(names))
    for make in (allowed_name, lambda name: allowed_name(f"score/{name}")):
        made = [make(name) for name in names]
        assert len(set(made)) == len(names)
        for name in made:
            validation._validate_metric_name(name)
            validation._validate_length_limit("", MAX_NAME, name)
    for make, valid in (
        (experiment_name, validation._validate_experiment_name),
        (model_name, validation._validate_model_name),
        (run_name, lambda name: name.encode()),
    ):
        made = [make(name) for name in names]
        assert len(set(made)) == len(names)
        for name in made:
            valid(name)
            assert name == name.strip() and name.isprintable() and name.encode()
    assert all(len(run_name(name)) <= 250 and len(model_name(name)) <= 250 for name in names)
    assert [allowed_name(name) for name in WHOLE] == WHOLE, "what loses nothing stays"
    assert experiment_name("my news/2: a") == "my news/2: a"
    assert model_name("demo-moram seed0") == "demo-moram seed0"
    assert allowed_name("news 1").startswith("news_1-")


def test_texts_that_stores_take():
    assert text("a é 中\n", 100) == "a é 中\n"
    assert text("a\udcff\0", 100) == "a\\udcff\\x00"
    long = [text("x" * 7000 + end, 6000) for end in "ab"]
    assert long[0] != long[1] and {len(one) for one in long} == {6000}
    assert "[cut, 7001 characters, sha256 " in long[0]
    assert len(text("\udcff" * 60, 300)) == 300


GOOD = [
    *("http://host", "http://host:5000", "https://host:65535/path/", "http://10.0.0.1:5000"),
    *(
        "http://[::1]:5000",
        "http://u:p@host:5000",
        "http://host./x?a=b",
        "http://ho_st",
        "HTTP://h",
    ),
    *("databricks", "databricks://profile", "http://bücher.example", "http://host:/"),
    *(
        "sqlite:///x.db",
        "sqlite:///a b#c/x.db",
        "sqlite:///x.db?timeout=60",
        "sqlite+pysqlite:///x",
    ),
]
BAD = {
    "http://[::1": "malformed",
    "http://[::zz]:1": "malformed|cannot be",
    "mlruns": "plain folder",
    "file:///tmp/mlruns": "plain folder",
    "runs/mlruns": "plain folder",
    "http://": "names no host",
    "http:host": "names no host",
    "http:/host": "names no host",
    "http://:5000": "names no host",
    "http://host:65536": "from 1 to 65535",
    "http://host:0": "from 1 to 65535",
    "http://host:-1": "from 1 to 65535",
    "http://host:abc": "from 1 to 65535",
    "http://host:5000:1": "from 1 to 65535",
    "http://ho st:5000": "blanks",
    "http://host\\x": "blanks",
    " http://host": "blanks",
    "http://host\n": "control characters",
    "http://ho\x7fst": "control characters",
    "http://a..b": "'a..b' cannot be",
    "http://999.1.1.1": "cannot be",
    "http://%zz": "cannot be",
    "ftp://host": "no store of kind 'ftp'",
    "htp://host": "no store of kind 'htp'",
    "localhost:5000": "no store of kind 'localhost'",
    "s3://bucket": "no store of kind 's3'",
    "sqlite:x.db": "sqlite:///FILE",
    "sqlite://x.db": "sqlite:///FILE",
    "sqlite:/x.db": "sqlite:///FILE",
    "sqlite://": "sqlite:///FILE",
    "sqlite:///": "must be a file",
    "sqlite:///:memory:": "must be a file",
    "sqlite:///file:x.db?uri=true": "must be a file",
    "sqlite:///a?b/x.db": "written %3F",
    "sqlite:///a/x.db?mode=ro": "written %3F",
    "sqlite:////dev/null/x.db": "is no folder",
    "sqlite:////proc": "is a folder",
    "postgresql://host:99999/db": "from 1 to 65535",
    "postgresql://host:x/db": "malformed",
    "postgresql+nodriver://host/db": "driver",
    f"http://host/?token={HIDDEN}": "give it again",
}


@pytest.mark.parametrize("uri", GOOD)
def test_addresses_of_stores(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(uri)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", BAD)
def test_what_is_no_address_is_refused_in_a_line(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=BAD[uri]) as said:
        check(uri)
    assert str(said.value).startswith("--tracking_uri ") and "\n" not in str(said.value)
    monkeypatch.setenv(addresses.VARIABLE, uri)
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI "):
        check(None)
    assert not list(tmp_path.iterdir())


def test_a_refusal_shows_no_password():
    secret = "s3cr3t"
    for uri in (
        *(f"alice:{secret}@host", f"http:/alice:{secret}@host", f"ftp://alice:{secret}@host"),
        *(f"http://alice:{secret} x@host", f"http://host:0/?token={secret}", f"x://u:{secret}@["),
        *(f"http://alice:a/{secret}@host:5000", f"postgresql://u:{secret}@host:x/db"),
    ):
        with pytest.raises(InputError) as said:
            check(uri)
        assert secret not in str(said.value)


def test_sqlite_files_that_are_none(tmp_path):
    (tmp_path / "x.db").write_text("not a database")
    with pytest.raises(InputError, match=r"x\.db is no sqlite file"):
        check(f"sqlite:///{tmp_path}/x.db")
    (tmp_path / "empty.db").touch()
    check(f"sqlite:///{tmp_path}/empty.db")
    sqlite3.connect(tmp_path / "y.db").execute("create table a (b int)").connection.close()
    check(f"sqlite:///{tmp_path}/y.db")


@pytest.mark.parametrize("folder", [*"?#%&;=+@ :'\"\\|é", "%20", "a%3Fb", "50%", "?uri=true", "%%"])
def test_the_store_beside_a_run_is_where_its_address_says(folder, tmp_path, monkeypatch):
    monkeypatch.delenv(addresses.VARIABLE, raising=False)
    uri = store_of(tmp_path / folder / "run")
    check(uri)
    assert sqlite_file(uri) == tmp_path / folder / "mlflow.db"
    assert sqlite_address(tmp_path / "plain.db") == f"sqlite:///{tmp_path}/plain.db"


def test_a_kept_address_gets_its_password_from_the_environment(tmp_path, monkeypatch):
    whole = "http://me:s3cr3t@host/?token=s3cr3t"
    kept = f"http://host/?token={HIDDEN}"
    monkeypatch.setenv(addresses.VARIABLE, whole)
    check(kept)
    assert store_of(tmp_path / "run", kept) == whole
    assert store_of(tmp_path / "run", "http://other") == "http://other"
    monkeypatch.setenv(addresses.VARIABLE, "http://other")
    with pytest.raises(InputError, match="give it again"):
        check(kept)


def test_hashes_are_of_the_whole_name():
    made = {allowed_name("/".join(parts)) for parts in itertools.product(("a", "", ".."), repeat=3)}
    assert len(made) == 27

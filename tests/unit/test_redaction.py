"""Passwords and tokens in whatever is shown or kept."""

from __future__ import annotations

import time

import pytest

from moram_dist.redaction import (
    HIDDEN,
    clean_address,
    clean_command,
    clean_tree,
    names_secret,
    without_secrets,
)

SECRET = "s3cr3t-W0rd"

ADDRESSES = {  # what is given, what is left of it
    f"http://alice:{SECRET}@127.0.0.1:9/": "http://127.0.0.1:9/",
    f"http://{SECRET}@host:5000/path": "http://host:5000/path",
    f"http://alice:{SECRET}@[::1]:5000": "http://[::1]:5000",
    f"http://alice:x/{SECRET}@host/path": "http://host/path",
    f"http://alice:x#{SECRET}?y@host": "http://host",
    f"http://alice:x@{SECRET}@host": "http://host",
    f"http://alice:x {SECRET}@host": "http://host",
    f"http:/alice:{SECRET}@host": "http:/host",
    f"http:\\\\alice:{SECRET}@host": "host",
    f"http:alice:x/{SECRET}@host": "host",
    f"alice:{SECRET}@host:5000": "host:5000",
    f"http://alice%40x:{SECRET}@host": "http://host",
    f"postgresql+psycopg2://me:{SECRET}@db/mlflow?sslmode=require": (
        "postgresql+psycopg2://db/mlflow?sslmode=require"
    ),
    f"postgresql://db/mlflow?user=me&password={SECRET}&sslmode=require": (
        f"postgresql://db/mlflow?user=me&password={HIDDEN}&sslmode=require"
    ),
    f"http://host/?token={SECRET}": f"http://host/?token={HIDDEN}",
    f"http://host/?access_token={SECRET}&a=1": f"http://host/?access_token={HIDDEN}&a=1",
    f"http://host/?p%61ssword={SECRET}": f"http://host/?p%61ssword={HIDDEN}",
    f"http://host/?a=1;Pwd={SECRET}": f"http://host/?a=1;Pwd={HIDDEN}",
    f"http://host/?password=x&{SECRET}": f"http://host/?password={HIDDEN}",
    f"http://host/?password=x'{SECRET}": f"http://host/?password={HIDDEN}",
    f"http://host/#id_token={SECRET}": f"http://host/#id_token={HIDDEN}",
    f"http://host/?proxy=http%3A%2F%2Fu%3A{SECRET}%40p": f"http://host/?proxy={HIDDEN}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D{SECRET}": (
        f"mssql+pyodbc:///?odbc_connect={HIDDEN}"
    ),
    f"https://bucket/x?X-Amz-Signature={SECRET}": f"https://bucket/x?X-Amz-Signature={HIDDEN}",
}

HARMLESS = [
    "http://host:5000/path@x",
    "http://[::1]:5000/a@b",
    "sqlite:////runs/a b/mlflow.db?mode=rw",
    "sqlite:///runs/q%3Fx/mlflow.db",
    "databricks://profile",
    "models:/demo-moram-seed0@after_002",
    "runs/moram@seed:0",
    "--max_prompt_tokens=128",
    "pad_token_id=0",
    "",
]


@pytest.mark.parametrize("given", ADDRESSES)
def test_an_address_keeps_its_place_and_loses_its_secrets(given):
    cleaned = clean_address(given)
    assert cleaned == ADDRESSES[given]
    assert clean_address(cleaned) == cleaned
    if " " not in given:
        for text in (given, f"MLflow at {given} is away", f"({given!r}: no)", f"--x={given}"):
            assert SECRET not in without_secrets(text)
            assert without_secrets(without_secrets(text)) == without_secrets(text)


@pytest.mark.parametrize("given", HARMLESS)
def test_what_is_no_secret_stays(given):
    assert clean_address(given) == given == without_secrets(given)


@pytest.mark.parametrize(
    "text",
    [
        f"Invalid header value 'Basic {SECRET}'",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f"Authorization: Bearer {SECRET}",
        f"invalid dsn: host=db password={SECRET} user=me",
        f'{{"password": "{SECRET} x"}}',
        f"MLFLOW_TRACKING_PASSWORD={SECRET}",
        f"MLFLOW_TRACKING_TOKEN={SECRET}",
        f"a\nhttp://u:{SECRET}@h\nhttp://u:{SECRET}@h/x",
    ],
)
def test_messages_of_libraries(text):
    assert SECRET not in without_secrets(text)


def test_words_that_only_look_like_it():
    for text in (
        "what a secret: nothing is kept",
        "Basic instructions for 'Basic' things",
        "tokens=7, token: 'x', max_new_tokens=8, tokenizer=gpt2, keys=3",
        "12:30:05 step 7 at http://host, mail me@host",
        'File "train.py", line 3, in main',
    ):
        assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("name", "value", "leak"),
    [
        ("MLFLOW_TRACKING_PASSWORD", SECRET, SECRET),
        ("MLFLOW_TRACKING_TOKEN", SECRET, SECRET),
        ("HF_TOKEN", SECRET, SECRET),
        ("AWS_SECRET_ACCESS_KEY", SECRET, SECRET),
        ("MLFLOW_TRACKING_URI", f"http://u:{SECRET}@host", SECRET),
        ("https_proxy", f"u:{SECRET}@proxy:3128", SECRET),
        ("HTTP_PROXY", "http://u:a%2Fb%2Fc%2Fd@proxy", "a/b/c/d"),
        ("MLFLOW_TRACKING_URI", "http://u:p4ssw0rd@host", "dTpwNHNzdzByZA=="),
    ],
    ids=range(8),  # pytest writes a test's name into the environment
)
def test_what_the_environment_holds_is_not_shown(monkeypatch, name, value, leak):
    text = f"a {leak} b"
    assert without_secrets(text) == text
    monkeypatch.setenv(name, value)
    assert without_secrets(text) == f"a {HIDDEN} b"


def test_a_word_that_equals_a_password_stays_in_settings(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "alphabetical")
    assert clean_command(["train.py", "--order", "alphabetical"])[2] == "alphabetical"


def test_commands():
    words = ["train.py", f"--tracking_uri=http://u:{SECRET}@h", "--model", "a=b", "--x", "--y=1"]
    assert clean_command(words) == ["train.py", "--tracking_uri=http://h", *words[2:]]


def test_settings():
    given = {
        "comet": {"api_key": SECRET, "enabled": True, "project": None},
        "path": "runs/a:b@c",
        "pad_token_id": 3,
        "list": [f"http://u:{SECRET}@h", ("x", 1)],
    }
    assert clean_tree(given) == {
        "comet": {"api_key": HIDDEN, "enabled": True, "project": None},
        "path": "runs/a:b@c",
        "pad_token_id": 3,
        "list": ["http://h", ["x", 1]],
    }


def test_variables():
    assert names_secret("HF_TOKEN", "x") and names_secret("http_proxy", "http://u:p@proxy")
    for name, value in (("HF_TOKEN", ""), ("TOKENIZERS_PARALLELISM", "0"), ("A", "http://h:1")):
        assert not names_secret(name, value)


@pytest.mark.parametrize("part", ["x://a:b", "://", "a:b@", "?token=", "&", "password='", "a"])
def test_a_long_text_takes_no_longer_than_its_length_says(part):
    def seconds(length: int) -> float:
        start = time.process_time()
        without_secrets(part * (length // len(part)))
        return time.process_time() - start

    assert seconds(200_000) < 20

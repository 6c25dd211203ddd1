"""The server, asked by OpenAI's own client: answers, streams, prefixes, errors, many clients."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from moram_dist import load_memory
from moram_dist.config import ModelConfig
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.use.answerer import Answerer, Asked
from moram_dist.use.source import read_source
from tests.helpers.drawn_runs import demo_benchmark, draw_run

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")

from launch.serving.app import build_app  # noqa: E402
from launch.serving.models import Served  # noqa: E402

pytestmark = pytest.mark.slow
PROMPTS = [example.prompt for task in demo_benchmark().tasks for example in task.test[:4]]
TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)
NEW = 8


@contextmanager
def served(run, *, api_key=None, name="run", model=None, **asked):
    """The address of a server of a run, in this process."""
    source = read_source(run, model)
    app = build_app(Served(name, Answerer(source, Asked(**asked))), api_key)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def client_of(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return draw_run(tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory):
    base = tmp_path_factory.mktemp("chats") / "base"
    shutil.copytree(DEMO_BASE, base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    return base


@pytest.fixture(scope="module")
def address(run, chat_base):
    with served(run, model=str(chat_base), recall="all") as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return client_of(address)


@pytest.fixture(scope="module")
def alone(run):
    """(prompt, number of tasks) -> what transformers' ``generate`` says in a process of its own."""
    tokenizer = load_tokenizer(ModelConfig())
    models = {
        n: load_memory(AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32), run, n)
        for n in (0, 1, 2)
    }

    def say(prompt, number=2, new=NEW):
        ids = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        out = models[number].generate(
            ids, max_new_tokens=new, do_sample=False, eos_token_id=2, pad_token_id=3
        )
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return say


def test_completions_are_those_of_generate(client, alone):
    names = {"run": 2, "run@after_000": 1, "run@after_001": 2}
    assert [model.id for model in client.models.list()] == [*names]
    said = set()
    for name, number in names.items():
        for prompt in PROMPTS[:3]:
            found = client.completions.create(model=name, prompt=prompt, max_tokens=NEW)
            assert found.choices[0].text == alone(prompt, number)
            assert found.model == name and found.usage.completion_tokens <= NEW
            said.add(found.choices[0].text)
    assert len(said) > 2
    found = client.completions.create(model="run", prompt=PROMPTS[0])
    assert found.choices[0].text == alone(PROMPTS[0])  # no longer than the task's answers


def test_a_stream_adds_up(client, alone):
    for prompt in PROMPTS[:3]:
        stream = client.completions.create(model="run", prompt=prompt, max_tokens=NEW, stream=True)
        pieces = [chunk for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in pieces) == alone(prompt)
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_chats_are_written_by_the_template(client, alone):
    messages = [{"role": "user", "content": "Hello there"}]
    tokenizer = load_tokenizer(ModelConfig())
    # The template writes BOS itself, or none: here none. The date is the one of training.
    plain = "26 Jul 2024\n<user>Hello there\n<assistant>"
    model = load_memory_and_say(tokenizer, plain)
    asked = {"model": "run", "messages": messages, "max_tokens": NEW}
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == model
    stream = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == model


@pytest.fixture(scope="module", autouse=True)
def _model(run):
    base = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    load_memory_and_say.model = load_memory(base, run)


def load_memory_and_say(tokenizer, text):
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = load_memory_and_say.model.generate(
        ids, max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=3
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_eight_clients_at_once_get_what_each_gets_alone(client, alone):
    """Of all prefixes mixed, half of them as streams."""
    names = ["run", "run@after_000", "run@after_001"]

    def ask(k):
        asked = {"model": names[k % 3], "prompt": PROMPTS[k % len(PROMPTS)], "max_tokens": NEW}
        if k % 2:
            return client.completions.create(**asked).choices[0].text
        return "".join(c.choices[0].text for c in client.completions.create(**asked, stream=True))

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(ask, range(24))]
    expected = [alone(PROMPTS[k % len(PROMPTS)], 1 if k % 3 == 1 else 2) for k in range(24)]
    assert found == expected


def test_recall_prefix_recognises_each_prompt(run, alone):
    prompts = [PROMPTS[0], PROMPTS[-1]]  # of the first and of the second task
    with served(run, recall="prefix") as address:
        client = client_of(address)
        for prompt, number in zip(prompts, (1, 2), strict=True):
            asked = {"prompt": prompt, "max_tokens": NEW}
            found = client.completions.create(model="run", **asked)
            assert found.choices[0].text == alone(prompt, number)
            found = client.completions.create(model="run@after_000", **asked)
            assert found.choices[0].text == alone(prompt, 1)


def test_an_earlier_state_and_a_method_without_any(tmp_path, run, alone):
    with served(run, upto="topic", recall="all") as address:
        client = client_of(address)
        assert [model.id for model in client.models.list()] == ["run", "run@after_000"]
        found = client.completions.create(model="run", prompt=PROMPTS[0], max_tokens=NEW)
        assert found.choices[0].text == alone(PROMPTS[0], 1)
    lora = draw_run(tmp_path / "lora", "sequential_lora")
    with served(lora, name="lora") as address:
        assert [model.id for model in client_of(address).models.list()] == ["lora"]


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"model": "other"}, openai.NotFoundError, "The model 'other' does not exist"),
        ({"model": "run@after_002"}, openai.NotFoundError, "does not exist"),
        ({"prompt": ["a", "b"]}, openai.BadRequestError, "'prompt' must be a text"),
        ({"prompt": ""}, openai.BadRequestError, "'prompt' must be a text"),
        ({"prompt": "long " * 300}, openai.BadRequestError, "maximum context length is 256 tok"),
        ({"max_tokens": 250}, openai.BadRequestError, "maximum context length is 256 tokens"),
        ({"max_tokens": 0}, openai.BadRequestError, "'max_tokens' must be a whole number"),
        ({"max_tokens": "many"}, openai.BadRequestError, "'max_tokens' must be a whole number"),
        ({"n": 2}, openai.BadRequestError, "'n' is not supported"),
        ({"logprobs": 3}, openai.BadRequestError, "'logprobs' is not supported"),
        ({"temperature": 9}, openai.BadRequestError, "'temperature' must be a number from 0 to 2"),
        ({"stop": [1]}, openai.BadRequestError, "'stop' must be a text or a list of texts"),
        ({"extra_body": {"zzz": 1}}, openai.BadRequestError, "Unexpected fields in the request"),
    ],
)
def test_a_wrong_request_gets_the_errors_of_the_api(client, asked, error, said):
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": "run", "prompt": PROMPTS[0], "max_tokens": 8} | asked)
    assert said in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


def test_wrong_messages(client, run):
    for messages in ([], [{"role": "user"}], [{"role": "user", "content": None}], ["x"]):
        with pytest.raises(openai.BadRequestError, match="'messages' must be a list"):
            client.chat.completions.create(model="run", messages=messages)
    with served(run) as address, pytest.raises(openai.BadRequestError, match="no chat template"):
        messages = [{"role": "user", "content": "x"}]
        client_of(address).chat.completions.create(model="run", messages=messages)


def http(address, path, content=None, method=None):
    request = urllib.request.Request(address + path, data=content, method=method)
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_is_no_request_of_the_api(address):
    assert http(address, "/health") == (200, '{"status":"ok"}')
    for content in (b"{", b"[]", b"", b"\xff"):
        status, body = http(address, "/v1/completions", content)
        assert status == 400 and json.loads(body)["error"]["type"] == "invalid_request_error"
    for path in ("/load_model", "/reset", "/v1/responses", "/docs", "/v1/other"):
        status, body = http(address, path, b"{}")
        assert status == 404 and "error" in json.loads(body), path
    assert http(address, "/v1/completions", method="GET")[0] == 405


def test_a_stream_ends_as_in_the_api(address):
    content = json.dumps({"model": "run", "prompt": "a", "max_tokens": 2, "stream": True})
    assert http(address, "/v1/completions", content.encode())[1].endswith("data: [DONE]\n\n")


def test_sampling_and_stop(client, alone):
    asked = {"model": "run", "prompt": PROMPTS[0], "max_tokens": NEW}
    texts = {client.completions.create(**asked, temperature=2).choices[0].text for _ in range(6)}
    assert len(texts) > 1
    assert client.completions.create(**asked, temperature=0).choices[0].text == alone(PROMPTS[0])
    whole = alone(PROMPTS[0])
    found = client.completions.create(**asked, stop=whole[2]).choices[0].text
    assert found.startswith(whole[:2]) and len(found) <= len(whole)


def test_a_client_that_leaves_stops_nobody(address, client, alone):
    content = json.dumps({"model": "run", "prompt": "a", "max_tokens": 200, "stream": True})
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as leaving:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        leaving.sendall(f"{head}content-type: application/json\r\n\r\n{content}".encode())
        leaving.recv(10)
    started = time.monotonic()
    found = client.completions.create(model="run", prompt=PROMPTS[0], max_tokens=NEW)
    assert found.choices[0].text == alone(PROMPTS[0])
    assert time.monotonic() - started < 120


def test_a_key(run):
    with served(run, api_key="sesame") as address:
        assert client_of(address, "sesame").models.list().data
        for key in ("none", "sesam"):
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
                client_of(address, key).models.list()
        assert http(address, "/health")[0] == 200
        assert http(address, "/v1/models")[0] == 401

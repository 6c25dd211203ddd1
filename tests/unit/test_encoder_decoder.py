"""Encoder-decoder models: what they read, what they learn, what they answer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moram_dist.config import ModelConfig
from moram_dist.data.stream import steps
from moram_dist.families import family_of_model
from moram_dist.families.causal import Causal
from moram_dist.families.encoder_decoder import EncodedPair, EncoderDecoder, encode_source
from moram_dist.models import language_model
from moram_dist.registry import InputError
from moram_dist.tasks.task import Decoding, Example, Task
from moram_dist.train.forward import Forward, answer_loss
from tests.helpers.answers import choose_batch, generate_batch, score_batch
from tests.helpers.tiny import save_tiny_model
from tests.helpers.tiny_t5 import PAD, START, save_tiny_t5, tiny_t5

EOS = 2
FAMILY = EncoderDecoder(START)
ENCODED = [
    EncodedPair("a", (START, 5, 6, 7, EOS), 4, source=(9, 8, 7, 6, EOS)),
    EncodedPair("b", (START, 5, EOS), 2, source=(11, 12, EOS)),
    EncodedPair("c", (START, EOS), 1, source=(13, 4, 5, 6, 7, 8, EOS)),
]
TEXTS = ("one", "the small red house by the sea", "who are you", "a b c d e f g h i j")
TASK = Task(name="t", metric="exact", train=(), test=(), max_prompt_tokens=12, max_answer_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return language_model.load_tokenizer(ModelConfig(model=str(folder)))


def test_collate_learns_the_answer_and_pads_both_texts_on_the_right():
    batch = FAMILY.collate(ENCODED, PAD)
    assert batch.labels[:, 1:].tolist() == [
        [5, 6, 7, EOS],
        [5, EOS, -100, -100],
        [EOS, -100, -100, -100],
    ]
    given = {name: tensor.tolist() for name, tensor in batch.inputs.items()}
    assert given == {
        "input_ids": [
            [9, 8, 7, 6, EOS, PAD, PAD],
            [11, 12, EOS, PAD, PAD, PAD, PAD],
            [13, 4, 5, 6, 7, 8, EOS],
        ],
        "attention_mask": [[1] * 5 + [0] * 2, [1] * 3 + [0] * 4, [1] * 7],
        "decoder_input_ids": [[START, 5, 6, 7, EOS], [START, 5, EOS, 0, 0], [START, EOS, 0, 0, 0]],
    }
    assert batch.lengths == (5, 7)


def test_a_rank_without_an_example_reads_two_blank_texts():
    (step,) = steps(
        ENCODED[:1],
        FAMILY,
        batch_size=2,
        micro_batch_size=1,
        micro_batch_tokens=100,
        epochs=1,
        seed=0,
        task=0,
        rank=1,
        world_size=2,
        pad_id=PAD,
    )
    (batch,) = step.micro_batches
    assert step.num_tokens == 10 and batch.rows == (0,)
    assert set(batch.inputs) == set(FAMILY.collate(ENCODED, PAD).inputs)
    assert answer_loss(Forward(tiny_t5(), tiny_t5())(batch)) == 0


@pytest.mark.parametrize("examples", [ENCODED, ENCODED[1:2]])
def test_the_loss_is_that_of_each_example_by_itself(examples):
    """The decoder reads its start and the answer without its last token; targets are the answer."""
    model, expected = tiny_t5(), 0.0
    for one in examples:
        answer = torch.tensor([one.tokens[1:]])
        read = torch.tensor([[START, *one.tokens[1:-1]]])
        logits = model(input_ids=torch.tensor([one.source]), decoder_input_ids=read).logits
        theirs = model(input_ids=torch.tensor([one.source]), labels=answer).loss * answer.numel()
        ours = F.cross_entropy(logits[0], answer[0], reduction="sum")
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        expected += ours.item()
    found = answer_loss(Forward(model, model)(FAMILY.collate(examples, PAD))).item()
    assert found == pytest.approx(expected, rel=1e-6)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_pair_is_what_the_tokenizer_makes_of_two_texts(tokenizer):
    example = Example("e", "the small red house", ("a mouse", "ignored"))
    pair = FAMILY.encode_training(tokenizer, example, TASK)
    assert pair.source == tuple(tokenizer(example.prompt)["input_ids"])
    assert pair.tokens == (START, *tokenizer("a mouse")["input_ids"])
    assert pair.num_answer == len(pair.tokens) - 1
    assert pair.source[-1] == pair.tokens[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_are_cut_before_eos(tokenizer, side):
    words = "one two three four five six seven eight nine ten"
    task = Task(
        name="t",
        metric="exact",
        train=(),
        test=(),
        max_prompt_tokens=9,
        max_answer_tokens=4,
        truncate_prompt=side,
    )
    whole = ids(tokenizer, words)
    pair = FAMILY.encode_training(tokenizer, Example("e", words, (words,)), task)
    kept = whole[:8] if side == "right" else whole[-8:]
    assert pair.source == (*kept, tokenizer.eos_token_id)
    assert pair.tokens == (START, *whole[:3], tokenizer.eos_token_id)


def test_what_is_kept_of_a_long_prompt_is_read_as_text_once_more():
    """As the published collators do: decoded with its spaces cleaned up, and tokenised again."""

    class Words:
        bos_token_id = None
        eos_token_id = EOS

        def __call__(self, text, *, add_special_tokens):
            return {"input_ids": text.split(" ")}

        def decode(self, tokens, *, skip_special_tokens, clean_up_tokenization_spaces):
            assert skip_special_tokens and clean_up_tokenization_spaces
            return " ".join(tokens).replace(" ,", ",")

    def read(text, limit, side="right"):
        task = Task(
            name="t",
            metric="exact",
            train=(),
            test=(),
            max_prompt_tokens=limit,
            truncate_prompt=side,
        )
        return encode_source(Words(), text, task)

    assert read("a , b c", 5) == ["a", ",", "b", "c", EOS]
    assert read("a , b c d", 5) == ["a,", "b", "c", "d", EOS]  # five tokens that are four words
    assert read("a , b c d e", 5) == ["a,", "b", "c", "d", EOS]
    assert read("a b c d e f", 5) == ["a", "b", "c", "d", EOS]
    assert read("a , b c d e", 5, "left") == ["b", "c", "d", "e", EOS]


def test_a_batch_generates_what_its_rows_do(tokenizer):
    model = tiny_t5(seed=3, vocab_size=1024)
    examples = [Example(f"e{i}", text, ("",)) for i, text in enumerate(TEXTS)]
    together = generate_batch(model, tokenizer, examples, TASK, Decoding())
    alone = [generate_batch(model, tokenizer, [one], TASK, Decoding())[0] for one in examples]
    assert together == alone
    assert len(set(together)) > 1 and all(together)
    for text, example in zip(together, examples, strict=True):
        source = torch.tensor([encode_source(tokenizer, example.prompt, TASK)])
        said = [START]
        for _ in range(TASK.max_answer_tokens):
            logits = model(input_ids=source, decoder_input_ids=torch.tensor([said])).logits
            said.append(int(logits[0, -1].argmax()))
            if said[-1] == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(said[1:], skip_special_tokens=True) == text


LABELS = ("red", "red house", "a very long label by the sea", "x")
CLOSED = Task(
    name="t",
    metric="exact",
    train=(),
    test=(),
    labels=LABELS,
    max_prompt_tokens=12,
    max_answer_tokens=2,  # a label is scored whole, whatever generation may say
)


@torch.no_grad()
def log_likelihood(model, tokenizer, prompt, label):
    """By the model's own loss, for one prompt and one label without padding."""
    source = torch.tensor([encode_source(tokenizer, prompt, CLOSED)])
    answer = torch.tensor([[*ids(tokenizer, label), tokenizer.eos_token_id]])
    return -model(input_ids=source, labels=answer).loss.item() * answer.numel()


def test_labels_are_scored_whole(tokenizer):
    model = tiny_t5(seed=3, vocab_size=1024)
    examples = [Example(f"e{i}", text, ("",)) for i, text in enumerate(TEXTS)]
    for found, text in zip(score_batch(model, tokenizer, examples, CLOSED), TEXTS, strict=True):
        for label in LABELS:
            expected = log_likelihood(model, tokenizer, text, label)
            assert found.sums[label] == pytest.approx(expected, rel=1e-5)
            length = len(ids(tokenizer, label)) + 1
            assert found.means[label] == pytest.approx(expected / length, rel=1e-5)


def test_constrained_generation_walks_through_the_labels(tokenizer):
    model = tiny_t5(seed=3, vocab_size=1024)
    tails = {label: [*ids(tokenizer, label), tokenizer.eos_token_id] for label in LABELS}
    examples = [Example(f"e{i}", text, ("",)) for i, text in enumerate(TEXTS)]
    chosen = choose_batch(model, tokenizer, examples, CLOSED)
    for found, example in zip(chosen, examples, strict=True):
        source, said = torch.tensor([encode_source(tokenizer, example.prompt, CLOSED)]), []
        while said not in tails.values():
            read = torch.tensor([[START, *said]])
            logits = model(input_ids=source, decoder_input_ids=read).logits[0, -1]
            n = len(said)
            following = {tail[n] for tail in tails.values() if tail[:n] == said and len(tail) > n}
            said.append(max(following, key=lambda token: logits[token].item()))
        assert tails[found] == said


def test_the_configuration_says_what_a_model_is(folder, tmp_path):
    ds_config = {"zero_optimization": {"stage": 0}}
    base = language_model.load(ModelConfig(model=str(folder), dtype="fp32"), ds_config)
    assert base.family == FAMILY == family_of_model(base.model)
    assert type(base.model).__name__ == "T5ForConditionalGeneration"
    causal = ModelConfig(model=str(save_tiny_model(tmp_path / "causal")), dtype="fp32")
    assert language_model.load(causal, ds_config).family == Causal()


def test_models_that_cannot_be_read_so_are_refused(tmp_path):
    config = ModelConfig(model=str(save_tiny_t5(tmp_path, decoder_start_token_id=None)))
    with pytest.raises(InputError, match="lacks decoder_start_token_id"):
        language_model.skeleton(config)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"add_bos_token": false', '"add_bos_token": true'))
    with pytest.raises(InputError, match="does not end a text with its end-of-sequence token"):
        language_model.load_tokenizer(config)

"""Train the demo's base model and its tokenizer from scratch, on generated text.

    python tools/train_demo_base.py [--out moram_dist/models/demo_base] [--steps 2500]

One seeded run on one CPU core takes about four minutes. The final loss, 0.28, comes from the plain
text, whose words are drawn at random; the model answers all questions by then.

The base has seen sentences of the demo's grammar; facts such as "A hammer is a kind of
tool."; and questions in the demo's layout and with its cues that ask for something else: a word
of the sentence ("Repeat the topic word.": hammer), the made-up number of its group ("Use the topic
number.": two), or the one category that no task asks for (``look``: small, large, old, new). So it
knows the words, which of them belong together, which of them a cue is about, and that a question
wants a short answer.

It has not seen an instruction of a demo task, or a label of a demo task as the answer to a question
about a sentence. It scores 0 on every task before training.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from moram_dist.tasks.demo import ASKS
from moram_dist.tasks.demo_text import SLOTS, make_sentence, question

SEED = 0
BATCH = 32
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 100
VOCABULARY = 1024
BOS, EOS, PAD = 1, 2, 3
IGNORED = -100

Document = tuple[str, str]
"""Prompt and answer; only the answer counts for the loss. Plain text has no prompt."""

NUMBERS = ("one", "two", "three", "four")


def fact(rng: random.Random) -> Document:
    """A word and its group, outside any sentence."""
    slot = rng.choice(list(SLOTS))
    label = rng.choice(list(SLOTS[slot]))
    word = rng.choice(SLOTS[slot][label])
    form = rng.choice(("{} is a kind of {}.", "{} belongs with {}.", "{}, that means {}."))
    return "", form.format(word, label)


CHATTER = (
    "Somebody does show a {a} feeling here, and tells which.",
    "It is a {a} sort of thing, what is it about?",
    "All this does happen where it is {a}.",
    "Which part of the day is {a}? Tell or say it.",
    "What work is {a}? Say which person does it.",
    "Mood or topic, place or time, job or look: {a} and {b}.",
    "Topic {a}. Mood {b}. Place {a}. Time {b}. Job {a}.",
)
"""Text with words of the tasks' questions, but without a question about a sentence."""


def plain(rng: random.Random) -> Document:
    """A sentence or two, or some chatter."""
    if rng.random() < 0.3:
        words = [rng.choice(rng.choice([*SLOTS[slot].values()])) for slot in ("look", "mood")]
        return "", rng.choice(CHATTER).format(a=words[0], b=words[1])
    return "", " ".join(make_sentence(rng).text for _ in range(rng.randint(1, 2)))


def repeat(rng: random.Random) -> Document:
    """A question whose answer is a word of the sentence."""
    sentence, slot = make_sentence(rng), rng.choice(list(SLOTS))
    ask = rng.choice(("Repeat the {} word.", "Copy the word for {}.", "Which {} word is in it?"))
    return question(ask.format(slot), sentence.text, slot.capitalize()), sentence.words[slot]


def number(rng: random.Random) -> Document:
    """A question whose answer is the made-up number of a word's group."""
    sentence, slot = make_sentence(rng), rng.choice(list(SLOTS))
    ask = rng.choice(("Use the {} number.", "Give the number of the {} word."))
    group = list(SLOTS[slot]).index(sentence.labels[slot])
    numbers = random.Random(slot).sample(NUMBERS, len(NUMBERS))  # the slot's own, always the same
    return question(ask.format(slot), sentence.text, slot.capitalize()), numbers[group]


def category(rng: random.Random) -> Document:
    """A question for the category that no task of the demo asks for."""
    sentence = make_sentence(rng)
    ask = rng.choice(("How does the thing look?", "Tell the size or age.", "Which look has it?"))
    return question(ask, sentence.text, "Look"), sentence.labels["look"]


KINDS = (fact, plain, repeat, number, category)
SHARES = (15, 10, 35, 30, 10)


def document(rng: random.Random) -> Document:
    """Draw from the mixture that the base is trained on."""
    return rng.choices(KINDS, SHARES)[0](rng)


def train_tokenizer(rng: random.Random) -> bytes:
    """A byte-fallback BPE model in which the words of the grammar are mostly one piece each."""
    texts = [" ".join(document(rng)).strip() for _ in range(20_000)]
    texts += [question(ask.instruction, "", ask.cue) for ask in ASKS.values()] * 200
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        character_coverage=1.0,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def batch(
    rng: random.Random, tokenizer: sentencepiece.SentencePieceProcessor
) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both (BATCH, longest), padded on the right."""
    rows, targets = [], []
    for prompt, answer in (document(rng) for _ in range(BATCH)):
        asked = [BOS, *tokenizer.encode(prompt)]
        answered = [*tokenizer.encode(answer), EOS]
        rows.append(asked + answered)
        targets.append([IGNORED] * len(asked) + answered)
    longest = max(map(len, rows))
    return (
        torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (longest - len(row)) for row in targets]),
    )


def document_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over documents of their mean token loss: a one-word answer weighs as much as a text."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    counts = (targets[:, 1:] != IGNORED).sum(dim=1)
    return (losses.sum(dim=1) / counts).mean()


def new_model() -> LlamaForCausalLM:
    """Three layers, about 0.7 M parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.08,  # about width ** -0.5; at 0.02 attention starts to learn late
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def train_model(steps: int, tokenizer: sentencepiece.SentencePieceProcessor) -> LlamaForCausalLM:
    """AdamW with a linear warm-up and a linear decay to zero."""
    torch.manual_seed(SEED)
    rng = random.Random(f"base/{SEED}")
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 1 - step / steps)
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps")
    start = time.monotonic()
    recent: list[float] = []
    for step in range(1, steps + 1):
        ids, targets = batch(rng, tokenizer)
        loss = document_loss(model(ids).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-99:], loss.item()]
        if step % 100 == 0 or step == steps:
            mean = sum(recent) / len(recent)
            print(f"step {step}  loss {mean:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return model


TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
    "model_max_length": 256,
    "padding_side": "left",
    "truncation_side": "left",
    "clean_up_tokenization_spaces": False,
}


def main() -> None:
    """Train both and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("moram_dist/models/demo_base"))
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # so that sums, and therefore weights, do not depend on cores
    tokenizer_model = train_tokenizer(random.Random(f"tokenizer/{SEED}"))
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    model = train_model(arguments.steps, tokenizer)

    model.bfloat16().save_pretrained(arguments.out)
    (arguments.out / "tokenizer.model").write_bytes(tokenizer_model)
    config = json.dumps(TOKENIZER_CONFIG, indent=2) + "\n"
    (arguments.out / "tokenizer_config.json").write_text(config)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()

"""The data sets of Long Sequence and Standard CL: names, instructions, answer sets, sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set in O-LoRA's and SAPT's words."""

    group: str
    """O-LoRA's task, which determines the instruction."""

    dataset: str
    """O-LoRA's name."""

    definition: str
    """SAPT's instruction, stripped."""

    labels: tuple[str, ...]
    """In the order and the words of O-LoRA's option lists."""

    num_train: int
    """Examples of the published training file."""


_FIVE_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_TRUE_FALSE = ("True", "False")

INSTRUCTIONS = {
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    "Choose one from the option.",
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning? '
    "Choose one from the option.",
    "SC": "What is the sentiment of the following paragraph? Choose one from the option.",
    "TC": "What is the topic of the following paragraph? Choose one from the option.",
    "BoolQA": "According to the following passage, is the question true or false? "
    "Choose one from the option.",
    "MultiRC": "According to the following passage and question, is the candidate answer true or "
    "false? Choose one from the option.",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both "
    "sentence? Choose one from the option.",
}
"""O-LoRA's instructions by group. COPA has none: its sentences contain question and options."""

DATASETS: dict[str, Dataset] = {
    "yelp": Dataset(
        group="SC",
        dataset="yelp",
        definition="Your task is to perform sentiment classification on the given reviews about a "
        "restaurant, choosing from the following 5 options: very negative, negative, neutral, "
        "positive and very positive",
        labels=_FIVE_STARS,
        num_train=5000,
    ),
    "amazon": Dataset(
        group="SC",
        dataset="amazon",
        definition="Given a review text from an e-commerce platform, please analyze the sentiment "
        "polarity expressed in the text. Choose one from the following sentiment categories: very "
        "negative, negative, neutral, positive and very positive.",
        labels=_FIVE_STARS,
        num_train=5000,
    ),
    "mnli": Dataset(
        group="NLI",
        dataset="MNLI",
        definition="What is the logical relationship (contradiction, entailment or neutral) "
        'between the "sentence 1" and the "sentence 2"? Choose one from the option.',
        labels=("neutral", "entailment", "contradiction"),
        num_train=3000,
    ),
    "cb": Dataset(
        group="NLI",
        dataset="CB",
        definition="Given a pair of sentences 1 and 2, identify the relationship between them.",
        labels=("entailment", "contradiction", "neutral"),
        num_train=250,
    ),
    "wic": Dataset(
        group="WiC",
        dataset="WiC",
        definition="Given a word and two sentences, whether the word is used with the same sense "
        "in both sentence?",
        labels=_TRUE_FALSE,
        num_train=2000,
    ),
    "copa": Dataset(group="COPA", dataset="COPA", definition="", labels=("A", "B"), num_train=400),
    "qqp": Dataset(
        group="QQP",
        dataset="QQP",
        definition='Whether the "first sentence" and the "second sentence" have the same meaning? '
        "Choose one from the option: yes or no.",
        labels=("False", "True"),
        num_train=2000,
    ),
    "boolq": Dataset(
        group="BoolQA",
        dataset="BoolQA",
        definition="According to the following passage, is the question true or false? Choose one "
        "from the option.",
        labels=_TRUE_FALSE,
        num_train=2000,
    ),
    "rte": Dataset(
        group="NLI",
        dataset="RTE",
        definition="Does the following sentence 1 contradict or entailment the sentence 2?",
        labels=("contradiction", "entailment"),
        num_train=2000,
    ),
    "imdb": Dataset(
        group="SC",
        dataset="IMDB",
        definition="Classify the sentiment polarity expressed in the following movie reviews.",
        labels=("Good", "Bad"),
        num_train=2000,
    ),
    "sst2": Dataset(
        group="SC",
        dataset="SST-2",
        definition="Make a judgement on the sentiment of the given text.",
        labels=("Good", "Bad"),
        num_train=2000,
    ),
    "dbpedia": Dataset(
        group="TC",
        dataset="dbpedia",
        definition="I will give you some category entries from Wikipedia, please classify them by "
        "topic.",
        labels=(
            "Company",
            "Educational Institution",
            "Artist",
            "Athlete",
            "Office Holder",
            "Mean of Transportation",
            "Building",
            "Natural Place",
            "Village",
            "Animal",
            "Plant",
            "Album",
            "Film",
            "Written Work",
        ),
        num_train=14000,
    ),
    "agnews": Dataset(
        group="TC",
        dataset="agnews",
        definition="Please categorize the topics of the news article given below.",
        labels=("World", "Sports", "Business", "Science or Technology"),
        num_train=4000,
    ),
    "multirc": Dataset(
        group="MultiRC",
        dataset="MultiRC",
        definition="According to the following passage and question, is the candidate answer true "
        "or false? Choose one from the option.",
        labels=("False", "True"),
        num_train=2000,
    ),
    "yahoo": Dataset(
        group="TC",
        dataset="yahoo",
        definition="I will give you a pair of question and answer, please categorize the topic "
        "discussed within.",
        labels=(
            "Society & Culture",
            "Science & Mathematics",
            "Health",
            "Education & Reference",
            "Computers & Internet",
            "Sports",
            "Business & Finance",
            "Entertainment & Music",
            "Family & Relationships",
            "Politics & Government",
        ),
        num_train=10000,
    ),
}

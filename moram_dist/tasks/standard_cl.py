"""Standard CL: four text classification tasks of Long Sequence, in three orders.

Files, prompts and rules are those of ``long_sequence``. Yelp is one of the five data sets from
which the benchmark was made, but is in no published order; ``--order`` may name it.

Source: Zhang et al. 2015, arXiv:1509.01626, in the orders of Wang et al. 2023 (O-LoRA),
arXiv:2310.14152.
"""

from __future__ import annotations

from dataclasses import replace

from moram_dist.tasks.long_sequence import FOLDERS
from moram_dist.tasks.long_sequence import PROTOCOLS as LONG_SEQUENCE
from moram_dist.tasks.published import Published
from moram_dist.tasks.rules import RULES
from moram_dist.tasks.task import BENCHMARKS

TASKS = ("dbpedia", "amazon", "yahoo", "agnews", "yelp")
ORDERS = {
    "1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "3": ("yahoo", "amazon", "agnews", "dbpedia"),
}

PROTOCOLS = {
    name: replace(protocol, tasks={task: protocol.tasks[task] for task in TASKS})
    for name, protocol in LONG_SEQUENCE.items()
    if name != "sapt"  # SAPT has no settings for these orders
}

RULES.register("standard_cl")(PROTOCOLS)
BENCHMARKS.register("standard_cl")(
    Published(name="standard_cl", orders=ORDERS, held_out="dev", folders=FOLDERS)
)

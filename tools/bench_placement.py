"""Measure bytes stored, bytes sent and seconds of each placement, on gloo ranks of this machine.

    python tools/bench_placement.py            tables in Markdown, about four minutes on two cores

The first table shows the bytes that 1, 2 and 4 ranks store and receive, next to the formulas of
``atoms.placement``. The second shows seconds of one linear's forward and backward pass on 2 ranks
over a grid of tokens and atoms, with placements in turn within one run, and the choice of ``auto``
if a copy of all atoms does not fit.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Gathered, Placement, Resident, Stationary
from moram_dist.atoms.placer import CALL_BYTES, tokens_move
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.comm import env
from moram_dist.comm.collectives import AtomGroup, make_atom_group
from moram_dist.comm.joining import join

WIDTH = 1024
ROUTING = Routing(top_k=16, temperature=0.03)
TOKENS, ATOMS = (4, 32, 128, 512), (64, 256, 1024, 4096)
TABLE = (240, 256)
"""Atoms and tokens in the table of bytes."""
REPEATS = 15


def main() -> None:
    """Start the ranks of each table, and print their results."""
    if "RANK" in os.environ:
        return worker()
    n, t = TABLE
    print(f"\nOne linear, {WIDTH} to {WIDTH}, fp32, {n} atoms, {t} tokens a rank, top_k 16:\n")
    print("| ranks | placement | stored | of all | received, forward and backward | formula |")
    print("| --- | --- | --- | --- | --- | --- |")
    for ranks in (1, 2, 4):
        for row in ranks_say(ranks, "bytes"):
            print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(
        "\nMilliseconds, median (least) of the slower of 2 ranks; auto without room for copies:\n"
    )
    print(
        "| tokens | atoms | resident | gathered | stationary | auto takes | over the better one |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in ranks_say(2, "seconds"):
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def ranks_say(ranks: int, what: str) -> list[list[Any]]:
    """Run this file on ``ranks`` ranks. Returns the answer of rank 0."""
    common = {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(env.free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, what],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outs = [process.communicate(timeout=1800)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed")
    return json.loads(outs[0].splitlines()[-1])


def worker() -> None:
    """The program of one rank."""
    join()
    torch.set_num_threads(1)
    group = make_atom_group("world")
    rows = {"bytes": bytes_table, "seconds": seconds_table}[sys.argv[1]](group)
    env.barrier()
    if env.is_main():
        print(json.dumps(rows), flush=True)
    env.leave()


def make(group: AtomGroup, num_atoms: int, num_tokens: int) -> tuple[Bank, dict[str, Placement]]:
    """A memory of one linear, and its placements."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(num_atoms, WIDTH, generator=generator) for _ in range(2))
    bank = Bank([(WIDTH, WIDTH)], group, like=keys, copied=group.size > 1)
    bank.grow([(keys, values)])
    gathered = Gathered(group)
    gathered.banks = [bank]
    stationary = Stationary(group, [num_tokens] * group.size)
    return bank, {"resident": Resident(group), "gathered": gathered, "stationary": stationary}


def one_pass(bank: Bank, placement: Placement, x: torch.Tensor) -> None:
    """Forward and backward."""
    none = [x.new_empty(0, WIDTH)]
    (y,) = recall_together(bank, placement, ROUTING, [x], none, none)
    y.backward(y.detach())
    x.grad = None


def bytes_table(group: AtomGroup) -> list[list[Any]]:
    """Stored and received bytes of each placement."""
    (num_atoms, num_tokens), P, rows = TABLE, group.size, []
    bank, placements = make(group, num_atoms, num_tokens)
    total, kept = num_atoms * bank.atom_bytes, min(ROUTING.top_k, num_atoms // P)
    each_way = num_tokens * 2 * WIDTH * 4
    formulas = {
        "resident": 0,
        "gathered": 2 * (P - 1) * total // P,
        "stationary": (P - 1) * (2 * each_way + num_tokens * P * (4 + 8 * kept + 8)),
    }
    x = torch.randn(num_tokens, WIDTH, requires_grad=True)
    for name, placement in placements.items():
        group.traffic.clear()
        one_pass(bank, placement, x)
        received = sum(traffic.bytes for traffic in group.traffic.values())
        stored = bank.stored_bytes + (bank.copy_F.nbytes if name == "resident" else 0)
        rows.append([P, name, f"{stored:,}", f"{stored / total:.2f}", f"{received:,}"])
        rows[-1].append("the same" if received == formulas[name] else f"{formulas[name]:,}")
    return rows


def seconds_table(group: AtomGroup) -> list[list[Any]]:
    """Time of a pass for each placement."""
    rows = []
    for num_tokens in TOKENS:
        for num_atoms in ATOMS:
            bank, placements = make(group, num_atoms, num_tokens)
            x = torch.randn(num_tokens, WIDTH, requires_grad=True)
            took: dict[str, list[float]] = {name: [] for name in placements}
            for turn in range(REPEATS + 1):
                for name, placement in placements.items():
                    env.barrier()
                    start = time.perf_counter()
                    one_pass(bank, placement, x)
                    spent = time.perf_counter() - start
                    if turn:  # the first warms up
                        took[name].append(1000 * max(env.gather_objects(spent)))
            middle = {name: statistics.median(times) for name, times in took.items()}
            moved = tokens_move(
                num_atoms,
                num_tokens,
                group.size,
                atom_bytes=bank.atom_bytes,
                call_bytes=CALL_BYTES[x.device.type],
            )
            auto = "stationary" if moved else "gathered"
            best = min(middle["gathered"], middle["stationary"])
            shown = [f"{middle[name]:.1f} ({min(took[name]):.1f})" for name in placements]
            rows.append([num_tokens, num_atoms, *shown, auto, f"{middle[auto] / best:.2f}"])
    return rows


if __name__ == "__main__":
    main()

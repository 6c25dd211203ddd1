"""Quiet keys: new atoms keep off the directions of older tasks' inputs, by hand and by formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moram_dist.adapters import directions
from moram_dist.adapters.subspaces import directions_of_inputs
from moram_dist.methods import METHODS
from moram_dist.methods.moram import Moram
from moram_dist.registry import InputError
from tests.helpers.configs import config_of
from tests.unit.test_inf_lora import DIAGONAL
from tests.unit.test_lora_baselines import OneLinear, begin

SETTINGS = {"atoms_per_task": 2, "alpha": 4.0, "top_k": 4, "temperature": 0.3, "dropout": 0}


def method(model: nn.Module, energy: float = 0.9, **settings: float) -> Moram:
    config = config_of(**(SETTINGS | {"quiet_keys": energy} | settings))
    found = METHODS["moram"](config, seed=0, num_tasks=3)
    found.build(model, ["layer"])
    return found


def looking(model, x):
    def look(limit):
        assert limit == directions.EXAMPLES
        return len(x), (model(row[None]).sum() for row in x)

    return look


def inputs(*lengths: float, seed: int = 0) -> torch.Tensor:
    """Rows whose elements are as long as that, at random."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(40, len(lengths), generator=draw) * torch.tensor(lengths)


@pytest.mark.parametrize(
    ("old", "energy", "new"),
    [
        ([], 3 / 4, [0]),  # energies are 3, 0, 1, 0
        ([], 0.76, [0, 2]),
        ([], 1.0, [0, 2]),
        ([0], 3 / 4, []),
        ([0], 0.9, [2]),
        ([2], 0.5, [0]),
        ([0, 2], 1.0, []),
    ],
)
def test_directions_of_inputs_by_hand(old, energy, new):
    eye = torch.eye(4, dtype=torch.float64)
    moment = DIAGONAL.clamp(min=0)
    found = directions_of_inputs(moment, eye[old], energy - 1e-9)
    assert found.tolist() == eye[new].tolist() and found.dtype == torch.float32


@pytest.mark.parametrize("size", [40, 600])
def test_directions_hold_what_they_should(size):
    """The large ones come from blocks of vectors that double."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(900, size, generator=draw) * torch.arange(1.0, size + 1) ** -0.5
    y = x.flip(1)
    old = directions_of_inputs((x.T @ x).double(), torch.zeros(0, size), 0.8)
    new = directions_of_inputs((y.T @ y).double(), old, 0.9)
    both = torch.cat([old, new])

    def held(rows, x):
        return ((x @ rows.T).square().sum() / x.square().sum()).item()

    assert held(old, x) >= 0.8 - 1e-6 and held(old[:-1], x) < 0.8
    assert held(both, y) >= 0.9 - 1e-6 and held(both[:-1], y) < 0.9
    torch.testing.assert_close(both @ both.T, torch.eye(len(both)), atol=1e-5, rtol=0)
    best = torch.linalg.eigvalsh((x.T @ x).double()).flip(0)
    least = int((best.cumsum(0) < 0.8 * best.sum()).sum()) + 1
    assert len(old) <= 1.05 * least + 1


def test_new_atoms_hardly_answer_older_inputs():
    model = OneLinear(6, 3)
    quiet = method(model)
    old, new = inputs(5, 4, 3, 0.1, 0.1, 0.1), inputs(0.1, 0.1, 3, 5, 4, 3, seed=1)
    begin(quiet, model, 0)
    assert quiet.memories["layer",].directions_KD.shape == (0, 6)
    values = model.layer.memory.values_0
    with torch.no_grad():
        values.normal_(generator=torch.Generator().manual_seed(2))
    model.eval()
    first = quiet.end_task(0, looking(model, old))
    basis = first["layer.directions"]
    assert basis.shape == (3, 6)

    begin(quiet, model, 1)
    with torch.no_grad():
        values.normal_(generator=torch.Generator().manual_seed(3))
    active = model.layer.memory.keys_0
    model.train()
    model(old).square().sum().backward()
    assert active.grad.norm() > 0
    # The gradient of k - U^T U k, by the chain rule.
    torch.testing.assert_close(
        active.grad @ basis.T, torch.zeros(2, 3), atol=1e-4 * active.grad.norm().item(), rtol=0
    )
    model.eval()
    before = model(new)
    second = quiet.end_task(1, looking(model, new))
    assert torch.equal(model(new), before), "freezing changed the outputs"
    expected = active.detach() - active.detach() @ basis.T @ basis
    torch.testing.assert_close(second["layer.keys"], expected)
    # At most a tenth of the energy of old inputs is left, wherever the key lies in it.
    scores, length = old @ second["layer.keys"].T, second["layer.keys"].square().sum(1)
    assert (scores.square().sum(0) <= 0.1001 * old.square().sum() * length).all()
    assert second["layer.directions"].shape[0] > 0


def test_a_resumed_task_has_the_same_keys():
    model, again = OneLinear(6, 3), OneLinear(6, 3)
    quiet, restored = method(model), method(again)
    begin(quiet, model, 0)
    tensors = quiet.end_task(0, looking(model, inputs(5, 4, 3, 0.1, 0.1, 0.1)))
    restored.load_task(0, tensors)
    for one, its in ((quiet, model), (restored, again)):
        begin(one, its, 1)
    found, expected = (m.layer.memory.stored(0) for m in (again, model))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], again.layer.memory.keys_0)


def test_what_files_hold():
    linears = {name: nn.Linear(4, 5) for name in ("x.q_proj", "x.k_proj", "x.o_proj")}
    config = config_of(atoms_per_task=2)
    free = METHODS["moram"](config, seed=0).shapes(0, linears)
    quiet = METHODS["moram"](config_of(atoms_per_task=2, quiet_keys=0.9), seed=0)
    more = {"x.q_proj.directions": (-1, 4), "x.o_proj.directions": (-1, 4)}
    assert quiet.shapes(0, linears) == free | more


@pytest.mark.parametrize("energy", [-0.1, 1.0, 2])
def test_a_part_that_cannot_be_meant(energy):
    with pytest.raises(InputError, match=r"--quiet_keys must be in \[0, 1\)"):
        config_of(quiet_keys=energy)


def test_a_projected_lora_hardly_answers_older_inputs():
    model = OneLinear(6, 3)
    config = config_of(method="gpm_lora", atoms_per_task=2, alpha=4.0, dropout=0)
    gpm = METHODS["gpm_lora"](config, seed=0, num_tasks=3)
    gpm.build(model, ["layer"])
    old = inputs(5, 4, 3, 0.1, 0.1, 0.1)
    begin(gpm, model, 0)
    model.eval()
    basis = gpm.end_task(0, looking(model, old))["layer.directions"]
    assert basis.shape == (3, 6)
    begin(gpm, model, 1)
    with torch.no_grad():
        model.layer.lora_B.normal_(generator=torch.Generator().manual_seed(3))
    before = model(old)
    model(old).square().sum().backward()
    A = model.layer.lora_A
    torch.testing.assert_close(
        A.grad @ basis.T, torch.zeros(2, 3), atol=1e-4 * A.grad.norm().item(), rtol=0
    )
    second = gpm.end_task(1, looking(model, old))
    assert torch.equal(model(old), before), "freezing changed the outputs"
    torch.testing.assert_close(second["layer.lora_A"], A - A @ basis.T @ basis)
    again = METHODS["gpm_lora"](config, seed=0, num_tasks=3)
    restored = OneLinear(6, 3)
    again.build(restored, ["layer"])
    for i, tensors in enumerate(({"layer.directions": basis}, second)):
        again.load_task(
            i, {"layer.lora_A": A.detach(), "layer.lora_B": A.detach()[:, :3]} | tensors
        )
    assert torch.equal(again.older.of(("layer",)), gpm.older.of(("layer",)))

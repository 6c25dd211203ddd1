"""Choose the linears of a model to adapt, with the help of its family."""

from __future__ import annotations

from torch import nn

from moram_dist.adapters import reached, targets
from moram_dist.families.choose import family_of_model


def choose_targets(
    model: nn.Module, target_modules: str, *, is_skeleton: bool = False
) -> targets.Targets:
    """``adapters.targets.choose_targets`` in the part of the model that examples pass through.

    ``is_skeleton``: the model has no weights yet, so a trial pass can find unreached linears.
    """
    family = family_of_model(model)
    return targets.choose_targets(
        model,
        target_modules,
        family.part(model),
        unreached(model) if is_skeleton else (),
        family.heads(model),
    )


def find_linears(model: nn.Module, target_modules: str) -> list[str]:
    """``choose_targets(...).names``."""
    return [*choose_targets(model, target_modules).names]


def unreached(skeleton: nn.Module) -> set[str]:
    """``adapters.reached.unreached`` with a trial example of the model's family."""
    family = family_of_model(skeleton)
    inputs = family.trial_inputs(skeleton.config, reached.NUM_TOKENS, masked=True)
    return reached.unreached(skeleton, inputs)

"""Select the linears that ``--target_modules`` means, and describe the selection to the user.

Candidates are the linears that an example passes through and that are called: not other towers, the
output head, or linears whose weight a fused kernel reads. GPT-2's ``Conv1D`` counts as a linear.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from moram_dist.adapters.bypassed import bypassed
from moram_dist.registry import InputError

ATTENTION_CLASS = re.compile(r"(attention|attn)(v?\d+)?$", re.IGNORECASE)
"""Class names of attention modules: LlamaAttention, FalconFlashAttention2, MSAttn."""

ATTENTION_NAME = re.compile(r"attention|attn", re.IGNORECASE)
"""Attributes that hold an attention, or a part of one: self_attn, EncDecAttention."""

CHOOSER = re.compile(r"indexer", re.IGNORECASE)
"""Attributes that hold a module that only selects tokens: it gets no gradient."""

ROUTER_CLASS = re.compile(r"router|gating", re.IGNORECASE)
ROUTER_NAMES = ("gate", "router", "shared_expert_gate")

HEAD, OUTSIDE = "the output head", "no part of the language model"
UNREACHED, BYPASSED = "no text reaches it", "its block reads its weight"
CHOOSES = "it only chooses tokens"

SHOWN = 12
"""Names to list in one line."""


@dataclass(frozen=True)
class Targets:
    """The linears to adapt, and a description of them and of the others."""

    names: tuple[str, ...]
    """Full names in the model's order."""

    lines: tuple[str, ...]


def choose_targets(
    model: nn.Module,
    target_modules: str,
    part: nn.Module,
    unreached: Collection[str] = (),
    heads: Collection[str] = (),
) -> Targets:
    """The linears of ``model`` that ``target_modules`` means.

    Args:
        model: any Hugging Face language model.
        target_modules: ``attention`` (all linears of all attention modules), ``all-linear`` (all
            candidates but the routers of experts), last or full names joined by commas, or a
            regular expression that a full name must match whole.
        part: the part of the model that an example passes through: the model or a submodule.
        unreached: full names that a forward pass is known not to call.
        heads: full names of linears that produce the output, besides the output head.

    Raises:
        InputError: nothing matches, or a name in the list matches nothing (the message lists valid
            names), or the regular expression is invalid.
    """
    linears = _Linears(model, part, unreached, heads)
    if target_modules == "attention":
        names = linears.attention()
    elif target_modules == "all-linear":
        names = [name for name in linears.free if not linears.is_router(name)]
    else:
        names = _named(linears, target_modules)
    if not names:
        raise linears.no_match(target_modules)
    return Targets(tuple(names), linears.lines(names, target_modules))


def _named(linears: _Linears, target_modules: str) -> list[str]:
    parts = [part.strip() for part in target_modules.split(",")]
    if "" in parts:
        raise InputError(f"--target_modules {target_modules!r} has an empty name in its list")
    matches = {
        part: [n for n in linears.all if part in (n, last_name(n))] for part in dict.fromkeys(parts)
    }
    if any(matches.values()):
        for part, found in matches.items():
            if not found:
                raise linears.no_match(target_modules, part)
            if not any(name in linears.free for name in found):
                raise InputError(
                    f"--target_modules {target_modules!r}: {part} of {linears.kind} cannot be "
                    f"adapted: {linears.left[found[0]]}; it has: {linears.there_is()}"
                )
        wanted = {name for found in matches.values() for name in found}
        return [name for name in linears.free if name in wanted]
    try:
        pattern = re.compile(target_modules.strip())
    except re.error as error:
        raise InputError(
            f"--target_modules {target_modules!r} is no regular expression: {error}"
        ) from None
    return [name for name in linears.free if pattern.fullmatch(name)]


class _Linears:
    """The linears of a model, and why some of them are never adapted."""

    def __init__(
        self,
        model: nn.Module,
        part: nn.Module,
        unreached: Collection[str],
        heads: Collection[str],
    ) -> None:
        self.model = model
        self.kind = type(model).__name__
        self.modules = dict(model.named_modules())
        self.all = [n for n, m in self.modules.items() if isinstance(m, nn.Linear | Conv1D)]
        self.root = next((n for n, module in self.modules.items() if module is part), "")
        head = getattr(model, "get_output_embeddings", lambda: None)()
        read = bypassed(model)
        self.left: dict[str, str] = {}
        """Full name -> the reason why it is never adapted."""
        for name in self.all:
            if self.modules[name] is head or name in heads:
                self.left[name] = HEAD
            elif not within(name, self.root):
                self.left[name] = OUTSIDE
            elif name in read:
                self.left[name] = BYPASSED
            elif name in unreached:
                self.left[name] = UNREACHED
            elif any(CHOOSER.search(part) for part in name.split(".")[:-1]):
                self.left[name] = CHOOSES
        self.free = [name for name in self.all if name not in self.left]
        self.weights = [*self._weights_of_no_linear()]
        self.parents: dict[str, set[str]] = {}
        """Last name of a linear -> last names of the modules that contain one."""
        for name in [*self.free, *self.weights]:
            parent, _, last = name.rpartition(".")
            if not last_name(parent).isdigit():
                self.parents.setdefault(last, set()).add(last_name(parent))

    def attention(self) -> list[str]:
        return [name for name in self.free if self.in_attention(name)]

    def in_attention(self, name: str) -> bool:
        """Whether the module with that full name is part of an attention."""
        above = name.split(".")[:-1]
        return any(
            ATTENTION_NAME.search(part)
            or ATTENTION_CLASS.search(type(self.modules[".".join(above[: i + 1])]).__name__)
            for i, part in enumerate(above)
        )

    def is_router(self, name: str) -> bool:
        """Whether a linear chooses experts rather than transforms a token."""
        parent, _, last = name.rpartition(".")
        if ROUTER_CLASS.search(type(self.modules[parent]).__name__):
            return True
        beside = [child for child, _ in self.modules[parent].named_children()]
        return last in ROUTER_NAMES and any("expert" in child for child in beside)

    def there_is(self) -> str:
        """Last names of the linears that can be adapted."""
        return ", ".join(sorted({last_name(name) for name in self.free})) or "none"

    def no_match(self, target_modules: str, part: str | None = None) -> InputError:
        """The error of a request, or of one name of its list, that matches nothing."""
        names = {last_name(name) for name in self.free}
        near = difflib.get_close_matches(part or target_modules, names, n=1, cutoff=0.6)
        of = f"{self.kind}; did you mean {near[0]!r}?" if near else self.kind
        if part is None:
            line = f"--target_modules {target_modules!r} matches no linear layer of {of}"
        else:
            line = f"--target_modules {target_modules!r}: {part!r} is no linear layer of {of}"
        others = self._others()
        return InputError(f"{line}; it has: {self.there_is()}" + (f"; {others}" if others else ""))

    def lines(self, names: list[str], target_modules: str) -> tuple[str, ...]:
        """Lines that list the linears that are adapted, left alone, and not adaptable."""
        of = " of attention" if target_modules == "attention" else ""
        taken = {*names}
        line = f"adapted: {len(names)} linears{of} ({self._listed(names)})"
        rest = [name for name in self.free if name not in taken]
        if rest:
            line += f"; left as they are: {self._listed(rest)}"
        others = self._others()
        return (line, others) if others else (line,)

    def _others(self) -> str:
        """The layers that are never adapted, by reason; empty if the head is the only one."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            if reason != HEAD:
                what = self._tower(name) if reason == OUTSIDE else name
                reasons.setdefault(reason, []).append(what)
        reasons["no linear"] = [*self.weights]
        found = [f"{self._listed(names)} ({why})" for why, names in reasons.items() if names]
        return f"not adaptable: {', '.join(found)}" if found else ""

    def _listed(self, names: Iterable[str]) -> str:
        """Last names without duplicates; with the parent's name if several parents occur."""
        found = [*dict.fromkeys(self._short(name) for name in names)]
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return ", ".join(found[:SHOWN]) + more

    def _short(self, name: str) -> str:
        parent, _, last = name.rpartition(".")
        alone = len(self.parents.get(last, ())) < 2 and not last.isdigit()
        return last if alone else f"{last_name(parent)}.{last}".lstrip(".")

    def _tower(self, name: str) -> str:
        """The outermost module around a linear that no example passes through."""
        parts = name.split(".")
        for i in range(1, len(parts)):
            if not within(self.root, ".".join(parts[:i])):
                return ".".join(parts[:i])
        return name

    def _weights_of_no_linear(self) -> Iterator[str]:
        """Weight matrices outside of linears, of experts or of an attention."""
        for name, module in self.modules.items():
            if not within(name, self.root) or isinstance(module, nn.Linear | Conv1D | nn.Embedding):
                continue
            for last, weight in module.named_parameters(recurse=False):
                full = f"{name}.{last}".lstrip(".")
                is_stack = weight.ndim == 3 and "expert" in name
                if is_stack or (weight.ndim == 2 and self.in_attention(full)):
                    yield full


def within(name: str, root: str) -> bool:
    """Whether a full name belongs to the module ``root`` or to a module in it."""
    return not root or name == root or name.startswith(f"{root}.")


def last_name(name: str) -> str:
    """The name of a module within its parent."""
    return name.rpartition(".")[2]

"""Import, in the process that ranks are forked from, what a rank would import after its fork.

``tools.warm_ranks`` has the server of forks import this module; nothing else does.
"""

from __future__ import annotations

import importlib

from moram_dist.comm.lean import import_deepspeed

MODULES = (
    "deepspeed.runtime.zero.muon.muon_optimizer",  # with which deepspeed.initialize compares
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "eval.report.page",
    "launch.session",
    "matplotlib.backends.backend_svg",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
)

import_deepspeed()
for _name in MODULES:
    importlib.import_module(_name)

"""Each Triton kernel against torch, both on a GPU."""

import pytest
import torch

from tests.unit.dropout_parity import *  # noqa: F403
from tests.unit.kernel_parity import *  # noqa: F403
from tests.unit.mixture_parity import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

"""The run directory's lock. What else it checks is in tests/integration/test_bad_input.py."""

import pytest

from moram_dist.registry import InputError
from moram_dist.train.run_dir import RunDir


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    first, second = RunDir(tmp_path), RunDir(tmp_path)
    with first.locked():
        with pytest.raises(InputError, match=r"in use by another run \(process \d+ on "):
            with second.locked():
                raise AssertionError("two runs hold one folder")
    with second.locked():
        pass

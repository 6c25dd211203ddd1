"""What a run records of how its base reads pictures."""

from __future__ import annotations

from launch.settings import resolve
from moram_dist import config_io
from moram_dist.models import language_model
from moram_dist.train.inputs import differences, gather
from tests.helpers.tiny_clip import save_tiny_clip


def test_other_rules_for_pictures_are_named(tmp_path):
    folder = save_tiny_clip(tmp_path / "base")
    pictures = tmp_path / "sets" / "colours"
    for split in ("train", "test"):
        for label in ("red", "blue"):
            (pictures / split / label).mkdir(parents=True)
            (pictures / split / label / "0.png").write_bytes(b"not read here")

    def inputs():
        flags = {"model": folder, "benchmark": "images", "data_dir": tmp_path / "sets"}
        config, benchmark = resolve(config_io.build(flags))
        return gather(config, benchmark, {}, language_model.load_tokenizer(config.model), print)

    then = inputs()
    assert then.pictures["size"] == then.pictures["edge"] == 16
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"shortest_edge": 16', '"shortest_edge": 18'))
    assert differences(then, inputs()) == ["pictures: edge was 16, now 18"]

"""How a model wants its pictures: what its folder says, and what is refused in it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from moram_dist.data.pictures import Pixels
from moram_dist.data.preprocessor import read_pixels
from moram_dist.registry import InputError

PUBLISHED = {  # of OpenAI's models on the hub: the old form
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def written(folder, fields, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(fields))
    return folder


def test_the_defaults_are_clips(tmp_path):
    assert read_pixels(written(tmp_path, {})) == Pixels()
    assert read_pixels(written(tmp_path, PUBLISHED)) == Pixels()


def test_what_it_says_is_taken(tmp_path):
    fields = {
        "size": {"shortest_edge": 40, "longest_edge": None},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0, 0.5, 1],
        "image_std": [1, 1, 0.25],
        "rescale_factor": 0.00392156862745098,
        "do_pad": False,
        "do_flip_channel_order": None,
    }
    expected = Pixels(size=32, edge=40, mean=(0, 0.5, 1), std=(1, 1, 0.25))
    assert read_pixels(written(tmp_path, fields)) == expected


@pytest.mark.parametrize("whole", [False, True])
def test_what_transformers_saves(tmp_path, whole):
    from transformers import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.1] * 3
    )
    theirs.save_pretrained(tmp_path)
    if whole:  # as the processor of text and pictures saves it
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").unlink()
        written(tmp_path, {"image_processor": saved}, "processor_config.json")
    pixels = read_pixels(tmp_path)
    assert pixels == Pixels(size=32, edge=40, mean=(0.1, 0.1, 0.1))
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    expected = theirs(Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels.for_test(Image.fromarray(noise)), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_center_crop": False}, "do_center_crop: pictures are read with true only"),
        ({"do_resize": False}, "do_resize: "),
        ({"do_normalize": 0}, "do_normalize: "),
        ({"do_pad": True}, "do_pad: pictures are read with false only"),
        ({"do_thumbnail": True}, "do_thumbnail: "),
        ({"resample": 2}, "resample: 2; only 3, bicubic, is known"),
        ({"resample": None}, "resample: None"),
        ({"rescale_factor": 1}, "rescale_factor: 1; only 1/255 is known"),
        ({"rescale_factor": "1"}, "rescale_factor: '1'"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size: not a square"),
        ({"crop_size": {"height": 224}}, "crop_size: expected height and width"),
        ({"size": {"height": 224, "width": 224}}, "size: expected shortest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 500}}, "size: expected shortest_edge"),
        ({"size": 200}, "size: 200 is less than crop_size, 224; pictures are not padded"),
        ({"size": True}, "size: expected pixels from 1 to 4096, got True"),
        ({"size": 0}, "size: expected pixels"),
        ({"size": 10**9}, "size: expected pixels"),
        ({"size": [224]}, "size: expected pixels"),
        ({"crop_size": {"height": 22.5, "width": 22.5}}, "crop_size: expected pixels"),
        ({"image_mean": 0.5}, "image_mean: expected three numbers, got 0.5"),
        ({"image_mean": [0, 0]}, "image_mean: expected three numbers"),
        ({"image_std": [1, "1", 1]}, "image_std: expected three numbers"),
        ({"image_std": [1, 1, float("nan")]}, "image_std: expected three numbers"),
        ({"image_std": [1, 1, 0]}, "image_std: expected numbers over 0"),
    ],
)
def test_what_would_be_done_otherwise_is_refused(tmp_path, change, said):
    path = written(tmp_path, PUBLISHED | change) / "preprocessor_config.json"
    with pytest.raises(InputError) as error:
        read_pixels(tmp_path)
    assert str(error.value).startswith(f"{path}: {said}") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"size": 224'])
def test_a_malformed_configuration(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match="preprocessor_config"):
        read_pixels(tmp_path)


def test_no_configuration(tmp_path):
    with pytest.raises(InputError, match=r"preprocessor_config\.json: no such file"):
        read_pixels(tmp_path)
    written(tmp_path, {"tokenizer": {}}, "processor_config.json")
    with pytest.raises(InputError, match="expected an object 'image_processor'"):
        read_pixels(tmp_path)

"""From pictures to pixels: sizes, crops and numbers, beside transformers' and by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from moram_dist.data.pictures import ASPECT, Pixels, at, crop_box

RED_IS_COLUMN = Pixels(mean=(0, 0, 0), std=(1 / 255, 1, 1 / 255))


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def places(width, height):
    """A picture whose red is its column and whose blue is its row, both below 256."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.arange(width)
    pixels[:, :, 2] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("side", "start"), [(224, 0), (225, 0), (226, 1), (227, 2), (231, 4)])
def test_the_middle_begins_where_python_rounds(side, start):
    """A half to the even number: with 227 pixels the middle begins at 1.5, which becomes 2."""
    wide = RED_IS_COLUMN.for_test(places(side, 224))
    np.testing.assert_allclose(wide[0, 0], np.arange(start, start + 224), rtol=1e-6)
    high = RED_IS_COLUMN.for_test(places(224, side))
    np.testing.assert_allclose(high[2, :, 0], np.arange(start, start + 224), rtol=1e-6)


def test_the_shorter_edge_is_resized_and_the_longer_one_cut_off(monkeypatch):
    sizes = []
    resize = Image.Image.resize

    def noted(picture, size, *arguments):
        sizes.append((size, *arguments))
        return resize(picture, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noted)
    for size in ((400, 300), (300, 400), (224, 224), (500, 333), (10, 31)):
        assert Pixels().for_test(noise(*size)).shape == (3, 224, 224)
    bicubic = Image.Resampling.BICUBIC
    assert sizes == [
        ((298, 224), bicubic),  # 298.67
        ((224, 298), bicubic),
        ((224, 224), bicubic),
        ((336, 224), bicubic),
        ((224, 694), bicubic),
    ]


def test_pixels_by_hand():
    picture = noise(40, 30)
    found = Pixels(size=30, edge=30).for_test(picture)
    assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
    own = np.asarray(picture, np.float64)
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    for channel, row, column in ((0, 0, 0), (1, 7, 22), (2, 29, 29)):
        value = (own[row, column + 5, channel] / 255 - mean[channel]) / std[channel]
        assert found[channel, row, column] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "size", [(400, 300), (300, 400), (226, 224), (224, 229), (64, 48), (1000, 224), (7, 9), (1, 1)]
)
def test_same_as_transformers_where_the_crops_agree(size):
    from transformers import CLIPImageProcessorPil

    picture = noise(*size)
    theirs = CLIPImageProcessorPil()(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(Pixels().for_test(picture), theirs, atol=2e-6)


def test_transformers_crops_a_pixel_further_left_where_the_middle_is_a_half():
    """Should this fail, transformers rounds like torchvision now, and no trap is left."""
    from transformers import CLIPImageProcessorPil

    picture = noise(227, 224)
    theirs = CLIPImageProcessorPil()(picture, return_tensors="np")["pixel_values"][0]
    ours = Pixels().for_test(picture)
    assert np.abs(ours - theirs).max() > 1
    np.testing.assert_allclose(ours[:, :, :-1], theirs[:, :, 1:], atol=2e-6)


def test_a_training_crop_depends_on_its_place_alone():
    pixels, picture = Pixels(size=32, edge=32), noise(60, 50)
    found = {
        place: pixels.for_training(picture, at(*place)).tobytes()
        for place in ((0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4))
    }
    assert len({*found.values()}) == len(found)
    for place in reversed(found):
        assert pixels.for_training(picture, at(*place)).tobytes() == found[place]
    assert at(1).random() != at(1, 0).random() != at(1, 0, 0).random()


def test_a_training_crop_stays_the_same_over_releases():
    """Numbers that numpy drew when this was written: a resumed run must go on with the same."""
    assert [crop_box(640, 480, at(0, 1, 2, row)) for row in range(3)] == [
        (0, 0, 640, 480),
        (0, 0, 640, 480),
        (9, 4, 600, 473),
    ]
    assert crop_box(33, 28, at(7)) == (2, 0, 32, 28)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (280, 360), (32, 32)])
def test_areas_and_aspects_of_training_crops(width, height):
    boxes = np.array([crop_box(width, height, at(0, row)) for row in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    slack = 2 / min(width, height)
    drawn = (w < width) | (h < height)
    area, aspect = w * h / (width * height), w / h
    assert area[drawn].min() > 0.9 - slack and area.max() <= 1
    assert aspect.min() > ASPECT[0] - slack and aspect.max() < ASPECT[1] + slack
    assert {*boxes[:, 0]} >= {0, 1} and {*boxes[:, 1]} >= {0, 1}  # and they move


def test_the_draws_are_torchvisions():
    """Its steps, written once more: area, then aspect on a logarithmic scale, then the corner."""
    for row in range(200):
        rng = at(row)
        for _ in range(10):
            area = 90 * 70 * (0.9 + 0.1 * rng.random())
            aspect = (3 / 4) * (16 / 9) ** rng.random()
            w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if w <= 90 and h <= 70:
                left, top = math.floor(rng.random() * (91 - w)), math.floor(rng.random() * (71 - h))
                break
        else:
            w, h, left, top = 90, 70, 0, 0
        assert crop_box(90, 70, at(row)) == (left, top, left + w, top + h)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((400, 100), (133, 0, 266, 100)),
        ((100, 400), (0, 133, 100, 266)),
        ((50, 1), (24, 0, 25, 1)),
        ((1, 50), (0, 24, 1, 25)),
    ],
)
def test_the_largest_middle_of_an_elongated_picture(size, box):
    """No part of it has both an area of nine tenths and an allowed aspect."""
    assert crop_box(*size, at(0)) == box


def test_a_training_crop_is_cut_out_before_it_is_resized():
    picture, pixels = noise(60, 50), Pixels(size=32, edge=32)
    box = crop_box(60, 50, at(5))
    part = Image.fromarray(np.asarray(picture)[box[1] : box[3], box[0] : box[2]])
    small = part.resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        pixels.for_training(picture, at(5)),
        pixels.for_test(small),
    )


def test_it_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pixels().size = 3

"""Pixels against what transformers' processors give, and what processors cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from optmerge.errors import DataError, ModelError
from optmerge.models.family import Family, open_family
from optmerge.models.image_processor import ImageProcessor, image_processor_for
from tests.tiny import TinyFamily, pictures, save_family

SQUARE = {"height": 8, "width": 8}
PROCESSORS = {
    "vit": ViTImageProcessorPil(size=SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 9}, crop_size=SQUARE),
    "scaled": ViTImageProcessorPil(size=SQUARE, do_normalize=False, rescale_factor=1 / 128),
    "plain": ViTImageProcessorPil(size=SQUARE, do_normalize=False, do_rescale=False),
}


class Inverting(ViTImageProcessorPil):
    """Scales as no other processor does."""

    def rescale(self, image: np.ndarray, scale: float, **kwargs: object) -> np.ndarray:
        return 1.0 - image * scale


def made(processor: object, *, dtype: torch.dtype = torch.float32) -> ImageProcessor:
    return ImageProcessor(processor, channels=3, patch=3, dtype=dtype, where="a model")


@pytest.mark.parametrize("name", PROCESSORS)
def test_bytes_become_what_the_processor_gives(name: str) -> None:
    processor = made(PROCESSORS[name])
    for image in pictures(3):
        pixels = processor.prepare(image)
        assert pixels.dtype == torch.uint8
        wanted = PROCESSORS[name](images=[image], return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(processor.finish(pixels), wanted, rtol=1e-5, atol=1e-5)


def test_a_processor_of_its_own_mind_keeps_floats() -> None:
    unusual = Inverting(size=SQUARE)
    (image,) = pictures(1)
    pixels = made(unusual).prepare(image)
    assert pixels.dtype == torch.float32
    assert torch.equal(
        made(unusual).finish(pixels), torch.from_numpy(unusual(images=[image])["pixel_values"][0]).float()
    )


def test_the_model_gets_its_dtype_and_patches_are_counted() -> None:
    processor = made(PROCESSORS["vit"], dtype=torch.bfloat16)
    pixels = processor.prepare(*pictures(1))
    assert processor.finish(pixels).dtype == torch.bfloat16
    assert processor.patches(pixels) == 9  # 8 x 8 pixels in patches of 3


def test_images_of_different_sizes() -> None:
    processor = made(CLIPImageProcessorPil(size={"shortest_edge": 8}, do_center_crop=False))
    processor.prepare(*pictures(1, size=(10, 20)))
    with pytest.raises(DataError, match=r"different sizes, such as 16x8 and 8x16 pixels"):
        processor.prepare(*pictures(1, size=(20, 10)))


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return opened(save_family("vit", tmp_path))


def opened(made: TinyFamily) -> Family:
    return open_family(str(made.base), {name: str(path) for name, path in made.experts.items()}, relative_to=Path())


def test_whose_processor_it_is(family: Family) -> None:
    path = family.experts["two"].folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.0, 0.0, 0.0]}))
    image = pictures(1)[0]
    base, two = (image_processor_for(family, who, dtype=torch.float32) for who in ("base", "two"))
    assert base.mode == "RGB"
    assert torch.equal(base.prepare(image), two.prepare(image))
    assert not torch.equal(base.finish(base.prepare(image)), two.finish(two.prepare(image)))


def test_no_processor(family: Family) -> None:
    (family.base.folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"base has no image processor .* Set tokenizer to one that has: one, two"):
        image_processor_for(family, "base", dtype=torch.float32)
    with pytest.raises(ModelError, match=r"no 'tow' .* Did you mean 'two'"):
        image_processor_for(family, "tow", dtype=torch.float32)


def test_a_processor_that_transformers_does_not_know(family: Family) -> None:
    (family.base.folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nonsense"}')
    (family.base.folder / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ModelError, match="transformers cannot load the image processor"):
        image_processor_for(family, "base", dtype=torch.float32)

"""Images of calibration data: where they may stand, what they are hashed by, and what is wrong with damaged ones."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from optmerge.calibration.batches import Split
from optmerge.calibration.images import Picture, class_folders
from optmerge.calibration.kinds.image_classification import ClassifiedImages
from optmerge.calibration.pixel_keys import PixelKeys
from optmerge.calibration.sources import read_rows
from optmerge.errors import DataError
from optmerge.models.image_processor import ImageProcessor
from tests.tiny import pictures

HERE = "tasks.pets: pets.jsonl, row 3"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def picture(value: object, folder: Path = Path()) -> Picture:
    made = Picture.of(value, folder, HERE)
    assert made is not None
    return made


def test_the_same_pixels_have_one_key_wherever_they_stand(tmp_path: Path) -> None:
    one, other = pictures(2)
    (tmp_path / "sub").mkdir()
    one.save(tmp_path / "sub" / "one.png")
    rows = [[list(one.getpixel((x, y))) for x in range(one.width)] for y in range(one.height)]
    cells = [
        "sub/one.png",
        str(tmp_path / "sub" / "one.png"),
        written(one, "BMP"),
        {"bytes": written(one, "PNG"), "path": "elsewhere.png"},
        {"bytes": None, "path": "sub/one.png"},
        rows,
    ]
    keys = {picture(cell, tmp_path).key("RGB") for cell in cells}
    assert len(keys) == 1
    assert picture(written(other, "PNG")).key("RGB") not in keys
    assert picture(written(one.transpose(Image.Transpose.ROTATE_90), "PNG")).key("RGB") not in keys


def test_grey_arrays_become_what_the_model_takes() -> None:
    grey = picture([[0, 255], [7, 9], [1, 2]])
    assert grey.open("L").getpixel((1, 0)) == 255
    assert grey.open("RGB").getpixel((0, 1)) == (7, 7, 7)
    assert grey.open("RGB").size == (2, 3)


def test_images_stand_upright() -> None:
    image = pictures(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif)
    assert picture(buffer.getvalue()).open("RGB").size == (image.height, image.width)


def test_what_was_decoded_once_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pictures(2)
    path = tmp_path / "one.png"
    first.save(path)
    os.utime(path, (1e9, 1e9))
    found = [picture(str(path)), picture(written(second, "PNG"))]
    keys = PixelKeys("pets", "RGB")
    wanted = [keys.of(one) for one in found]
    assert wanted == [one.key("RGB") for one in found]
    keys.save()
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "open", lambda *_: pytest.fail("decoded again"))
        assert [PixelKeys("pets", "RGB").of(one) for one in found] == wanted
    assert PixelKeys("pets", "L").of(found[0]) != wanted[0]
    second.save(path)
    os.utime(path, (2e9, 1e9 + 1))
    assert PixelKeys("pets", "RGB").of(picture(str(path))) == wanted[1]


def test_a_file_that_has_only_just_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    keys = []
    for image in pictures(2):
        image.save(path)
        known = PixelKeys("pets", "RGB")
        keys.append(known.of(picture(str(path))))
        known.save()
    assert keys[0] != keys[1]


@pytest.mark.parametrize("value", [None, "", b"", {"bytes": None, "path": None}])
def test_empty_cells(value: object) -> None:
    assert Picture.of(value, Path(), HERE) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "the image is a int; expected a path"),
        ([[1, 2], [3]], "rows of the image are of different lengths"),
        ([[1, 256]], "from 0 to 255"),
        ([[0.5]], "from 0 to 255"),
        ([1, 2], r"shape \[2\]"),
    ],
)
def test_cells_that_hold_no_image(value: object, said: str) -> None:
    with pytest.raises(DataError, match=f"^{HERE}: .*{said}"):
        picture(value)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(written(pictures(1, size=(64, 64))[0], "PNG")[:200])
    with pytest.raises(DataError, match=r"there is no image .*gone\.png"):
        picture("gone.png", tmp_path).open("RGB")
    for name in ("text.png", "cut.png"):
        with pytest.raises(DataError, match=rf"{name}\) cannot be decoded"):
            picture(name, tmp_path).open("RGB")
    with pytest.raises(DataError, match=r"8 bytes\) cannot be decoded"):
        picture(b"no image").open("RGB")


def test_folders_of_images(tmp_path: Path) -> None:
    for place, name in enumerate(["cat/b.png", "cat/deep/a.jpg", "dog/c.bmp", "loose.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pictures(1, seed=place)[0].save(tmp_path / name)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    rows = read_rows(str(tmp_path), {"image", "label", "text"}, relative_to=Path())
    assert rows.available == ("image", "label")
    assert [Path(image).name for image in rows.columns["image"]] == ["b.png", "a.jpg", "c.bmp", "loose.png"]
    assert rows.columns["label"] == ["cat", "deep", "dog", ""]
    assert class_folders(tmp_path) == ["cat", "deep", "dog"]
    assert set(read_rows(str(tmp_path), {"image"}, relative_to=Path()).columns) == {"image"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is a folder; name one data file"):
        read_rows("empty", {"image"}, relative_to=tmp_path)


def test_a_split_s_hash_knows_how_bytes_are_scaled() -> None:
    """Processors that cut images alike give equal bytes and unequal inputs; what a model said of one is not reused."""

    def hashed(pixels: torch.Tensor, **options: object) -> str:
        made = ViTImageProcessorPil(size={"height": 8, "width": 8}, **options)
        processor = ImageProcessor(made, channels=3, patch=4, dtype=torch.float32, where="a model")
        return Split("fit", ["a", "b"], ClassifiedImages(pixels, None, processor)).sha256

    pixels = torch.arange(2 * 3 * 8 * 8).to(torch.uint8).view(2, 3, 8, 8)
    plain = hashed(pixels, image_mean=[0.4, 0.5, 0.6])
    assert hashed(pixels, image_mean=[0.4, 0.5, 0.6]) == plain
    others = [
        hashed(pixels, image_mean=[0.4, 0.5, 0.5]),
        hashed(pixels, image_mean=[0.4, 0.5, 0.6], image_std=[0.5, 0.5, 0.4]),
        hashed(pixels, image_mean=[0.4, 0.5, 0.6], rescale_factor=1 / 128),
        hashed(pixels.view(2, 3, 4, 16), image_mean=[0.4, 0.5, 0.6]),
    ]
    assert len({plain, *others}) == 5


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_values_beyond_a_byte_are_refused_and_not_cut_off(kind: type[np.generic]) -> None:
    deep = Image.fromarray((np.arange(12).reshape(3, 4) * 5000).astype(kind))
    with pytest.raises(DataError, match=rf"row 3: the image .* has pixels of the mode {re.escape(deep.mode)}.*8 bits"):
        picture(written(deep, "TIFF")).open("RGB")

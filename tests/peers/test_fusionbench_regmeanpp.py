"""RegMean++ and RegMean of CLIP's vision towers against FusionBench's, on the same images: within 2e-6, on the CPU.

Ours is the whole way of a search, from files on disk to the resident model; theirs is FusionBench's own class, with
stand-ins for what would be read from the Hub. It runs in fp64, for it inverts the summed Gram matrices in the precision
of the models: in fp32 that alone is 2e-5 away from its own result in fp64. Ours solves in fp64 whatever they are in.
Where the two differ on purpose, it is said beside the test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optmerge.config.load import build_config
from optmerge.merging.engine import one_hot
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from tests.image_zoo import CLASSES, image_settings
from tests.peers.conftest import FUSIONBENCH, Peer
from tests.tiny import KINDS, add_noise, make_model, pictures, save

pytestmark = pytest.mark.peers

LAYERS = 3
SHRINK = {"regmean++": 0.95, "regmean": 0.6}
Values = Mapping[str, torch.Tensor]

THEIRS = """
import json, sys, types
from collections import defaultdict
from unittest.mock import MagicMock

# They are imported for data sets on the Hub and a cache of test loaders, which are not used here.
for missing in ("joblib", "datasets"):
    sys.modules[missing] = types.ModuleType(missing)
    sys.modules[missing].__getattr__ = lambda name: MagicMock()

import torch
from fusion_bench.method.regmean.clip_regmean import RegMeanAlgorithmForCLIP
from fusion_bench.method.regmean_plusplus.clip_regmean_plusplus import RegMeanAlgorithmForCLIPPlusPlus
from fusion_bench.modelpool import BaseModelPool
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

folder, job = sys.argv[1], json.loads(sys.argv[2])
config = CLIPVisionConfig(**job["config"])

def tower(name, tuples=False):
    model = CLIPVisionModelWithProjection(config).eval()
    state = load_file(f"{folder}/base.safetensors") | load_file(f"{folder}/{name}.safetensors")
    model.load_state_dict(state)
    model.double()
    if tuples:  # what a layer of transformers 4 gave, of which FusionBench takes the first
        for layer in model.vision_model.encoder.layers:
            layer.register_forward_hook(lambda module, inputs, output: (output,))
    return model

class Pool(BaseModelPool):
    def __init__(self, tuples):
        self.tuples = tuples
    def named_models(self):
        return [(name, tower(name, self.tuples)) for name in job["experts"]]
    def load_pretrained_model(self):
        return tower("base", self.tuples)
    def load_model(self, name):
        return tower("base", self.tuples)
    def load_train_dataset(self, name):
        batches = load_file(f"{folder}/{name}-batches.safetensors")
        return [(batches[key].double(), None) for key in sorted(batches)]

class Fabric:
    setup = staticmethod(lambda model: model)
    setup_dataloaders = staticmethod(lambda loader: loader.dataset.dataset)  # whole batches

def on_the_cpu(algorithm):
    mappings = [getattr(base, "_config_mapping", None) for base in algorithm.__mro__]
    class Driven(algorithm):
        fabric, clip_processor = Fabric(), None
        # RegMean++'s own mapping is a plain dict, which the reader of settings cannot invert.
        _config_mapping = next(mapping for mapping in mappings if hasattr(mapping, "inverse"))
        def on_regmean_start(self):  # the zero-shot head, which RegMean has no use for
            pass
        def compute_logits(self, module, batch, task):
            return module(batch[0]).image_embeds
    return Driven

options = dict(num_regmean_examples=10**9, exclude_param_names_regex=[], weight_transpose=True, dataloader_kwargs={})
for name, algorithm in (("regmean++", RegMeanAlgorithmForCLIPPlusPlus), ("regmean", RegMeanAlgorithmForCLIP)):
    made = on_the_cpu(algorithm)(reduce_non_diagonal_ratio=job["shrink"][name], **options)
    merged = made.run(Pool(tuples=name == "regmean++"))
    save_file({key: value.contiguous() for key, value in merged.state_dict().items()}, f"{folder}/{name}.safetensors")
"""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A search over both methods, on two towers of three layers and images of their own."""
    zoo = tmp_path_factory.mktemp("clip")
    tower = {**KINDS["clip"][2]["vision_config"], "num_hidden_layers": LAYERS}
    base = make_model("clip", vision_config=tower)
    base.logit_scale.data.fill_(2.0)
    save(base, zoo / "base", "clip")
    for number, name in enumerate(("one", "two")):
        expert = make_model("clip", vision_config=tower)
        expert.load_state_dict(base.state_dict())
        add_noise(expert, seed=100 + number, scale=0.1).vision_model.save_pretrained(zoo / name)
        for place, picture in enumerate(pictures(72, seed=number)):
            into = zoo / f"pictures-{name}" / CLASSES[place % len(CLASSES)]
            into.mkdir(parents=True, exist_ok=True)
            picture.save(into / f"{place}.png")
    directions = [{"name": name, "shrink": shrink, "ridge": 0.0} for name, shrink in SHRINK.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = image_settings(zoo, heads="zero-shot", directions=directions, batch_tokens=40)
        return open_problem(absolute_references(build_config(settings, root=zoo), zoo))


@pytest.fixture(scope="module")
def theirs(
    run_in: Callable[[str], Peer], problem: Problem, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Values]:
    """What FusionBench makes of the same towers and images; its start is what takes time."""
    folder: Path = tmp_path_factory.mktemp("fusionbench")
    family = problem.family
    tower = family.configs["base"].vision_config.to_dict() | {"projection_dim": 8}
    for who in ("base", *family.experts):
        names = dict(problem.resident.model_for("a").named_parameters()) if who == "base" else family.parameters
        save_file({name: family.read(who, name).clone() for name in names}, folder / f"{who}.safetensors")
    for task, data in problem.calibration.tasks.items():
        batches = data.splits["fit"].batches(batch_tokens=40)
        kept = {f"{number:03d}": batch.to("cpu").inputs["pixel_values"] for number, batch in enumerate(batches)}
        assert len(kept) > 1
        save_file(kept, folder / f"{task}-batches.safetensors")
    job = {"experts": list(family.experts), "config": tower, "shrink": SHRINK}
    run_in(FUSIONBENCH)("python", "-c", THEIRS, str(folder), json.dumps(job))
    return lambda name: load_file(folder / f"{name}.safetensors")


def merged_by(problem: Problem, method: str) -> Values:
    """The resident model at scale 1 of a method."""
    direction = next(each.name for each in problem.directions if each.config and each.config.name == method)
    problem.engine.apply(one_hot(len(problem.space.groups), len(problem.directions), problem.column(direction)))
    return {name: parameter.data.clone() for name, parameter in problem.resident.parameters.items()}


def mean_of(problem: Problem, name: str) -> torch.Tensor:
    return (problem.family.read("a", name) + problem.family.read("b", name)) / 2


@pytest.mark.parametrize("method", SHRINK)
def test_layers_and_embeddings(method: str, problem: Problem, theirs: Callable[[str], Values]) -> None:
    ours, their = merged_by(problem, method), theirs(method)
    moved = 0
    for name, value in ours.items():
        if "post_layernorm" in name or "projection" in name:
            continue
        torch.testing.assert_close(value, their[name].float(), rtol=0, atol=2e-6, msg=name)
        moved += float((value - mean_of(problem, name)).abs().max()) > 0.01
    assert moved == LAYERS * 6  # the linear layers; embeddings, norms and biases are means in both


def test_what_comes_after_the_layers_stays_at_the_base_in_theirs(
    problem: Problem, theirs: Callable[[str], Values]
) -> None:
    """FusionBench's RegMean++ writes nothing but layers and what comes before them; ours averages the last norm too.

    Its RegMean averages it, as ours does.
    """
    for name in ("vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"):
        assert torch.equal(theirs("regmean++")[name].float(), problem.family.read("base", name))
        for found in (merged_by(problem, "regmean++"), merged_by(problem, "regmean"), theirs("regmean")):
            torch.testing.assert_close(found[name].float(), mean_of(problem, name), rtol=0, atol=1e-6)

"""AdaMerging as FusionBench runs it: the same losses, gradients and coefficients over twenty steps of Adam.

Experts with heads of their own stand for the vision towers with zero-shot heads: the body is merged, heads are fixed.
Our side goes the way of a search: evaluator, space, driver. FusionBench's side takes its merged model and entropy, and
the body of its training loop, on the batches that ours drew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from optmerge.config.load import build_config
from optmerge.drivers import make_driver
from optmerge.drivers.variables import Variables
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.problem import open_problem
from optmerge.runner.teachers import Teachers
from tests.peers.conftest import FUSIONBENCH, Peer
from tests.zoo import make_zoo, zoo_settings

pytestmark = pytest.mark.peers

STEPS, TASKS, RATE = 20, ("one", "two"), 0.03

THEIRS = """
import importlib.util, json, sys
import fusion_bench, torch
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
from fusion_bench.models.wrappers.task_wise_fusion import TaskWiseMergedModel, get_task_wise_weights
from safetensors.torch import load_file, save_file
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import AutoModel, AutoModelForSequenceClassification

# Its package cannot be imported without accelerate; this file of it can.
place = fusion_bench.__path__[0] + "/method/ties_merging/ties_merging_utils.py"
spec = importlib.util.spec_from_file_location("ties_merging_utils", place)
ties = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ties)

case = json.loads(sys.argv[1])
batches = load_file(case["folder"] + "/batches.safetensors")
base = AutoModel.from_pretrained(case["base"])
whole = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in case["experts"]]
heads, bodies = [model.classifier for model in whole], [model.bert for model in whole]
if case["split"]:  # AdaMerging++: trim, elect, and keep what agrees
    origin = parameters_to_vector(base.parameters()).detach()
    vectors = torch.stack([parameters_to_vector(body.parameters()).detach() - origin for body in bodies])
    kept = round(0.2 * len(origin))
    vectors, *_ = ties.topk_values_mask(vectors, K=(kept - 0.5) / len(origin))  # it keeps one more than it says
    sign = ties.resolve_sign(vectors)
    vectors = vectors * torch.where(sign > 0, vectors > 0, vectors < 0)
    for body, vector in zip(bodies, vectors):
        vector_to_parameters(origin + vector, body.parameters())
names = [name for name, _ in base.named_parameters()]
options = dict(pretrained_model=base, finetuned_models=bodies, clamp_weights=case["clamp"], strict=False)
if case["granularity"] == "tensor-wise":
    weights = get_layer_wise_weights(num_models=len(bodies), num_layers=len(names), init_values=case["start"])
    merged = LayerWiseMergedModel(layer_wise_weight=weights, **options)
else:
    weights = get_task_wise_weights(num_models=len(bodies), init_values=case["start"])
    merged = TaskWiseMergedModel(task_wise_weight=weights, **options)
merged.eval()
optimizer = torch.optim.Adam([merged.merge_weight], lr=case["rate"])
merged.merge_weights()
losses, gradients, coefficients = [], [], []
for step in range(case["steps"]):
    coefficients.append(merged.merge_weight.detach().clone())
    total = 0.0
    for task, head in enumerate(heads):
        inputs = {key.split("/")[2]: value for key, value in batches.items() if key.startswith(f"{step}/{task}/")}
        loss = entropy_loss(head(merged(**inputs).pooler_output))
        loss.backward(retain_graph=True)
        total += float(loss)
    losses.append(total)
    gradients.append(merged.merge_weight.grad.clone())
    optimizer.step()
    optimizer.zero_grad()
    merged.merge_weights()
tensors = {"coefficients": torch.stack(coefficients), "gradients": torch.stack(gradients)}
save_file(tensors | {"losses": torch.tensor(losses)}, case["folder"] + "/theirs.safetensors")
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def fusionbench(run_in: Callable[[str], Peer]) -> Peer:
    return run_in(FUSIONBENCH)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), "bert")


@pytest.mark.parametrize("clamp", [False, True], ids=["unbounded", "clamped"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties-split"])
@pytest.mark.parametrize("granularity", ["task-wise", "tensor-wise"])
def test_twenty_steps(granularity: str, method: str, clamp: bool, fusionbench: Peer, zoo: Path, tmp_path: Path) -> None:
    start = {"task_arithmetic": 0.97, "ties-split": 0.03}[method] if clamp else 0.3  # so that coefficients go outside
    config = build_config(
        zoo_settings(
            zoo,
            method=method,
            space={"granularity": granularity, "bounds": [0, 1] if clamp else [-9, 9], "start": start},
            objective={"terms": [{"name": "entropy", "weight": len(TASKS), "normalise": "none"}]},  # a sum over tasks
            driver={"name": "adam", "lr": RATE, "batch": 8, "bound": "clamp" if clamp else "project"},
        ),
        root=tmp_path,
    )
    problem = open_problem(config)
    evaluator = Evaluator(problem, Teachers.make(problem))
    space, data = problem.space, problem.calibration
    variables = Variables(space.names, space.lower, space.upper, space.start)
    seed, sizes = np.random.SeedSequence(1), data.fit_sizes()
    driver = make_driver(config.driver, variables, seed=seed, fit_sizes=sizes, budget=STEPS)
    losses, gradients, vectors = [], [], []
    batches: dict[str, Tensor] = {}
    for step in range(STEPS):
        (candidate,) = driver.ask()
        assert candidate.examples is not None
        for number, task in enumerate(data.tasks):
            positions = candidate.examples[task]
            (batch,) = data.tasks[task].splits["fit"].batches(batch_tokens=10_000, positions=positions)
            batches |= {f"{step}/{number}/{name}": tensor.contiguous() for name, tensor in batch.inputs.items()}
        evaluation = evaluator.evaluate(candidate.vector, "fit", examples=candidate.examples, gradient=True)
        assert evaluation.gradient is not None
        losses.append(evaluation.value)
        gradients.append(evaluation.gradient)
        vectors.append(candidate.vector)
        driver.tell([candidate], [evaluation])
    save_file(batches, tmp_path / "batches.safetensors")
    case = {"granularity": granularity, "split": method == "ties-split", "clamp": clamp, "start": start, "rate": RATE}
    places = {"folder": str(tmp_path), "base": str(zoo / "base"), "experts": [str(zoo / task) for task in TASKS]}
    printed = fusionbench("python", "-c", THEIRS, json.dumps(case | places | {"steps": STEPS}))
    parameters = [f"bert.{name}" for name in json.loads(printed.splitlines()[-1])]
    theirs = {name: tensor.double().numpy() for name, tensor in load_file(tmp_path / "theirs.safetensors").items()}

    np.testing.assert_allclose(losses, theirs["losses"], rtol=1e-5)
    # [steps, K] or [steps, K, parameters] -> [steps, variables], in our order.
    row = {name: at for at, group in enumerate(space.groups) for name in group.parameters}
    places_of = [(row[name], at) for at, name in enumerate(parameters)] if granularity == "tensor-wise" else [(0, 0)]
    order = np.array([[space.index[group, expert], expert, at] for group, at in places_of for expert in (0, 1)])
    order = order[order[:, 0] >= 0]  # a part that is zero in a whole tensor is no variable

    def reordered(values: np.ndarray) -> np.ndarray:
        values = values.reshape(STEPS, len(TASKS), -1)
        result = np.full((STEPS, space.dimension), np.nan)
        result[:, order[:, 0]] = values[:, order[:, 1], order[:, 2]]
        return result

    raw, found = reordered(theirs["coefficients"]), np.array(gradients)
    inside = (raw >= 0) & (raw <= 1) if clamp else np.ones_like(raw, dtype=bool)
    assert inside.all() != clamp
    np.testing.assert_allclose(np.where(inside, found, 0.0), reordered(theirs["gradients"]), rtol=1e-4, atol=1e-5)
    # What attention's softmax cancels has no gradient but rounding, which Adam blows up.
    moved = np.abs(found).max(0) > 1e-5
    assert moved.mean() > 0.8
    expected = raw.clip(0, 1) if clamp else raw
    np.testing.assert_allclose(np.array(vectors)[:, moved], expected[:, moved], atol=1e-5)

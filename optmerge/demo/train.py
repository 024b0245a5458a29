"""Fine-tuning one expert of the demo: a stock sequence classifier, under a minute on two cores.

In: the base model's folder and labelled rows. Out: a folder that ``AutoModelForSequenceClassification`` loads, with
tokenizer and label names; it appears when training has ended, so a killed run leaves nothing half done.

    train_expert(zoo / "base", rows, ("negative", "positive"), zoo / "sentiment", recipe=TrainingRecipe())

The recipe is strong on purpose: the experts must be clearly better than the base on their own task, and clearly in each
other's way. Dropout is off, so the one generator made here is the only source of randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from optmerge.atomic import atomic_directory
from optmerge.demo.recipe import TrainingRecipe
from optmerge.records import Progress

_BUCKET = 8  # batches whose examples are sorted by length together


def train_expert(
    base: Path,
    rows: Sequence[tuple[str, str]],
    labels: Sequence[str],
    folder: Path,
    *,
    recipe: TrainingRecipe,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Fine-tune the base on labelled rows and save the classifier to ``folder``, whole or not at all.

    Args:
        base: Folder of the base model and its tokenizer.
        rows: Text and label name; ``recipe`` says how many are used.
        labels: Label names in the head's order.
        folder: Where the expert is saved.
        recipe: The training's settings.
        progress: Told ("expert <folder name>", steps done, steps).
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(rows), generator=generator)[: max(recipe.probe_examples, recipe.steps * recipe.batch)]
    chosen = [rows[position] for position in order.tolist()]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = tokenizer([text for text, _ in chosen], truncation=True, max_length=recipe.max_tokens)["input_ids"]
    targets = torch.tensor([labels.index(label) for _, label in chosen])
    stage = f"expert {folder.name}"
    progress(stage, 0, recipe.steps)

    model = _classifier(base, labels)
    probe = range(min(recipe.probe_examples, len(chosen)))
    _start_head(model, tokens, targets, probe)
    for step, batch in enumerate(_batches(tokens, recipe, generator)):
        if step == 0:
            optimizer = _optimizer(model, recipe)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * recipe.rate(step)
        loss = functional.cross_entropy(model(**pad(tokens, batch)).logits, targets[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(stage, step + 1, recipe.steps)
    with atomic_directory(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def pad(tokens: Sequence[Sequence[int]], positions: Sequence[int]) -> dict[str, Tensor]:
    """A padded batch of token lists: input_ids and attention_mask, int64[B, T].

    >>> pad([[5, 6], [7]], [0, 1])["attention_mask"].tolist()
    [[1, 1], [1, 0]]
    """
    length = max(len(tokens[position]) for position in positions)
    input_ids = torch.zeros(len(positions), length, dtype=torch.int64)  # 0 is BERT's [PAD]
    mask = torch.zeros_like(input_ids)
    for row, position in enumerate(positions):
        count = len(tokens[position])
        input_ids[row, :count] = torch.tensor(tokens[position])
        mask[row, :count] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def logistic_regression(
    features: Tensor, targets: Tensor, classes: int, *, penalty: float = 1e-4, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier by L-BFGS.

    Args:
        features: float32[N, H].
        targets: int64[N].
        classes: How many classes, C.
        penalty: Weight of the squared norm of the weights, in units of the features' mean squared norm.
        iterations: Most L-BFGS iterations.

    Returns:
        Weight float32[C, H] and bias float32[C].
    """
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    scale = penalty * features.square().sum(dim=1).mean()
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(features @ weight.T + bias, targets) + scale * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _classifier(base: Path, labels: Sequence[str]) -> PreTrainedModel:
    """The stock classifier over the base's weights, embeddings frozen, dropout off."""
    names = dict(enumerate(labels))
    config = AutoConfig.from_pretrained(base, id2label=names, label2id={name: index for index, name in names.items()})
    with torch.random.fork_rng(devices=[]):  # building draws initial values that are all replaced
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(AutoModel.from_pretrained(base, dtype=torch.float32).state_dict())
    model.base_model.embeddings.requires_grad_(False)
    return model.eval()


def _start_head(
    model: PreTrainedModel, tokens: Sequence[Sequence[int]], targets: Tensor, positions: Sequence[int]
) -> None:
    """Set the head to the logistic regression on what the base makes of some examples."""
    ranked = sorted(positions, key=lambda position: len(tokens[position]))
    with torch.no_grad():
        batches = [ranked[first : first + 32] for first in range(0, len(ranked), 32)]
        features = torch.cat([model.base_model(**pad(tokens, batch)).pooler_output for batch in batches])
    head = model.classifier
    assert isinstance(head, nn.Linear)
    weight, bias = logistic_regression(features, targets[ranked], head.out_features)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _optimizer(model: PreTrainedModel, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    body = [parameter for parameter in model.base_model.parameters() if parameter.requires_grad]
    groups = [
        {"params": body, "peak": recipe.learning_rate},
        {"params": list(model.classifier.parameters()), "peak": recipe.learning_rate * recipe.head_factor},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _batches(tokens: Sequence[Sequence[int]], recipe: TrainingRecipe, generator: torch.Generator) -> list[list[int]]:
    """The steps' batches: examples of like length together, in an order that the generator shuffles.

    Examples are used again when there are fewer than the steps need.
    """
    positions = [number % len(tokens) for number in range(recipe.steps * recipe.batch)]
    window = _BUCKET * recipe.batch
    batches: list[list[int]] = []
    for first in range(0, len(positions), window):
        ranked = sorted(positions[first : first + window], key=lambda position: len(tokens[position]))
        made = [ranked[start : start + recipe.batch] for start in range(0, len(ranked), recipe.batch)]
        batches += [made[place] for place in torch.randperm(len(made), generator=generator).tolist()]
    return batches

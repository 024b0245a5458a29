"""Opened tiny families and random recipes over them, for the exporters' tests.

family = opened("vit", tmp_path)
recipe = random_recipe(family, seed=3)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.config.methods import IsoCConfig
from optmerge.merging.coefficients import Static, Table
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe
from optmerge.merging.slices import Cut, even_chunks
from optmerge.models.family import Family, open_family
from optmerge.space.groups import column_cuts
from tests.tiny import TinyFamily, add_noise, make_model, save, save_family


def saved(kind: str, folder: Path, *, experts: tuple[str, ...] = ("one", "two"), **config: Any) -> TinyFamily:
    """A family on disk; "bert-merged" is a BERT classifier whose head all models share."""
    if kind != "bert-merged":
        return save_family(kind, folder, experts=experts, **config)
    base = make_model("bert", num_labels=3, **config)
    folders = {}
    for index, name in enumerate(experts):
        expert = add_noise(make_model("bert", num_labels=3, **config), seed=100 + index)
        folders[name] = save(expert, folder / name, "bert")
    return TinyFamily(save(base, folder / "base", "bert"), folders)


def opened(kind: str, folder: Path, **options: Any) -> Family:
    """`saved`, and opened."""
    tiny = saved(kind, folder, **options)
    return open_family(str(tiny.base), {name: str(path) for name, path in tiny.experts.items()}, relative_to=folder)


def open_with_adapter(kind: str, folder: Path, **config: Any) -> Family:
    """A family whose second expert is the base with a LoRA adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    tiny = saved(kind, folder, experts=("one",), **config)
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        model = get_peft_model(make_model(kind, **config), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(str(folder / "lora"))
    experts = {"one": str(tiny.experts["one"]), "two": f"{tiny.base}+{folder / 'lora'}"}
    return open_family(str(tiny.base), experts, relative_to=folder)


def recipe_of(family: Family, table: Table | None = None, *, method: bool = False, **changes: Any) -> Recipe:
    """A tensor-wise recipe over a family; zeros unless a table is given.

    Args:
        family: The models.
        table: float64[parameters, directions].
        method: Add Iso-C as the last direction.
        changes: Other fields of the recipe.
    """
    directions = [Direction(name, "expert") for name in family.experts]
    if method:
        directions.append(Direction("iso-c", "method", IsoCConfig()))
    groups = tuple(
        Group(name, family.disk_names(name), parameter.role.layer, parameter.role.kind)
        for name, parameter in family.parameters.items()
    )
    if table is None:
        table = np.zeros((len(groups), len(directions)))
    fields: dict[str, Any] = {
        "base": ModelEntry(family.base.reference, family.base.sha256()),
        "experts": {
            name: ModelEntry(checkpoint.reference, checkpoint.sha256()) for name, checkpoint in family.experts.items()
        },
        "directions": tuple(directions),
        "groups": groups,
        "coefficient_fn": Static(table),
        "heads": family.heads,
    }
    return Recipe(**{**fields, **changes})


def random_recipe(family: Family, *, seed: int = 0, method: bool = False, **changes: Any) -> Recipe:
    """A recipe with random coefficients, a third of them negative."""
    shape = (len(family.parameters), len(family.experts) + method)
    table = np.random.default_rng(seed).normal(0.3, 0.7, shape)
    return recipe_of(family, table, method=method, **changes)


def sliced_recipe(family: Family, *, chunks: int = 0, seed: int = 0, **changes: Any) -> Recipe:
    """A recipe with random coefficients for every input column, or for so many chunks of each parameter."""
    if chunks:
        made = {name: even_chunks(parameter.shape, chunks) for name, parameter in family.parameters.items()}
        cuts: dict[str, Cut] = {name: cut for name, cut in made.items() if cut is not None}
    else:
        cuts = column_cuts({name: parameter.role for name, parameter in family.parameters.items()}, family.parameters)
    whole = recipe_of(family)
    groups = tuple(
        replace(group, cut=cuts.get(name)) for name, group in zip(family.parameters, whole.groups, strict=True)
    )
    shape = (sum(group.count for group in groups), len(whole.directions))
    table = np.random.default_rng(seed).normal(0.3, 0.7, shape)
    return replace(whole, groups=groups, coefficient_fn=Static(table), **changes)

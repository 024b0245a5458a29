"""A recipe: everything needed to make one merged model again, as data.

It names the base and the experts with their content hashes, the directions that have coefficients, and one
coefficient for every (tensor group, direction). Groups speak the tensor names of the base's checkpoint on disk.

    recipe = Recipe.load(Path("runs/first/recipe.yaml"))
    family = open_recipe(recipe, relative_to=Path("runs/first"))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from optmerge.atomic import atomic_write
from optmerge.config.methods import MethodConfig
from optmerge.errors import RecipeError
from optmerge.merging.coefficients import CoefficientFn, Static, Table

if TYPE_CHECKING:
    from optmerge.models.family import Family

FORMAT = 1
_METHOD: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model that a recipe is made of."""

    reference: str
    sha256: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Direction:
    """A delta that gets coefficients: an expert's task vector, or the delta that a whole method gives."""

    name: str
    kind: Literal["expert", "method"]
    config: MethodConfig | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share their coefficients.

    Attributes:
        name: Unique within the recipe.
        tensors: Names in the base's checkpoint on disk.
        layer: Index of the transformer layer, None outside the layers or across them.
        kind: A role (attention, mlp, norm, embedding, final-norm, head, other), or "layer" or "model" when mixed.
    """

    name: str
    tensors: tuple[str, ...]
    layer: int | None = None
    kind: str = "other"


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A merge as data; see the module docstring. Values are frozen, ``coefficients`` is read-only."""

    base: ModelEntry
    experts: Mapping[str, ModelEntry]
    directions: tuple[Direction, ...]
    groups: tuple[Group, ...]
    coefficient_fn: CoefficientFn
    method: str = "task_arithmetic"
    heads: Literal["own", "merged"] = "merged"
    dtype: str = "float32"
    tokenizer: str = "base"
    created: Mapping[str, Any] = field(default_factory=dict)

    @property
    def coefficients(self) -> Table:
        """float64[G, D]; for what can only be done with static coefficients.

        Raises:
            RecipeError: The coefficients depend on the input.
        """
        if not self.coefficient_fn.static:
            raise RecipeError("This recipe's coefficients depend on the input, and this needs static ones.")
        return self.coefficient_fn()

    def to_yaml(self) -> str:
        """The recipe as YAML; floats keep every digit."""
        table = self.coefficients
        names = [direction.name for direction in self.directions]
        body = {
            "optmerge_recipe": FORMAT,
            "method": self.method,
            "base": _model_to_dict(self.base),
            "experts": {name: _model_to_dict(entry) for name, entry in self.experts.items()},
            "directions": [
                {"name": d.name, "expert": d.name}
                if d.kind == "expert"
                else {"name": d.name, "method": d.config.model_dump() if d.config else None}
                for d in self.directions
            ],
            "heads": self.heads,
            "dtype": self.dtype,
            "tokenizer": self.tokenizer,
            "created": dict(self.created),
            "groups": [
                {
                    "name": group.name,
                    "layer": group.layer,
                    "kind": group.kind,
                    "tensors": list(group.tensors),
                    "coefficients": {name: float(value) for name, value in zip(names, row, strict=True)},
                }
                for group, row in zip(self.groups, table, strict=True)
            ],
        }
        return yaml.safe_dump(body, sort_keys=False, width=120, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write the recipe atomically."""
        atomic_write(path, self.to_yaml())

    @classmethod
    def from_yaml(cls, text: str, path: Path | str = "recipe") -> Recipe:
        """Read a recipe back.

        Raises:
            RecipeError: The text is not a recipe, or one of another format; ``path`` is named.
        """
        try:
            body = yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise RecipeError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
        if not isinstance(body, dict) or "optmerge_recipe" not in body:
            raise RecipeError(
                f"{path} is not an optmerge recipe: the key optmerge_recipe is missing. "
                "A run's best recipe is recipe.yaml in its folder."
            )
        if body["optmerge_recipe"] != FORMAT:
            raise RecipeError(
                f"{path} has recipe format {body['optmerge_recipe']}; this optmerge reads {FORMAT}. Upgrade optmerge."
            )
        try:
            directions = tuple(_direction(entry) for entry in body["directions"])
            names = [direction.name for direction in directions]
            groups = tuple(
                Group(entry["name"], tuple(entry["tensors"]), entry["layer"], entry["kind"]) for entry in body["groups"]
            )
            rows = [[float(entry["coefficients"][name]) for name in names] for entry in body["groups"]]
            recipe = cls(
                base=ModelEntry(**body["base"]),
                experts={name: ModelEntry(**entry) for name, entry in body["experts"].items()},
                directions=directions,
                groups=groups,
                coefficient_fn=Static(np.array(rows, dtype=np.float64).reshape(len(groups), len(names))),
                method=body["method"],
                heads=body["heads"],
                dtype=body["dtype"],
                tokenizer=body["tokenizer"],
                created=body.get("created") or {},
            )
        except (KeyError, TypeError, ValueError, ValidationError) as problem:
            what = f"the key {problem} is missing" if isinstance(problem, KeyError) else " ".join(str(problem).split())
            raise RecipeError(f"{path} is not a whole recipe: {what}.") from None
        _check(recipe, path)
        return recipe

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: The file is missing or not a recipe.
        """
        try:
            return cls.from_yaml(path.read_text(encoding="utf-8"), path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise RecipeError(f"There is no recipe file {path}.") from None


def open_recipe(
    recipe: Recipe, *, relative_to: Path = Path(), check_hashes: bool = True, allow_pickle: bool = False
) -> Family:
    """The family of models that a recipe merges.

    Raises:
        RecipeError: A model's content differs from the hash in the recipe, or a tensor is unknown to the base.
        ModelError: A model is missing, damaged or does not fit.
    """
    from optmerge.models.family import open_family

    family = open_family(
        recipe.base.reference,
        {name: entry.reference for name, entry in recipe.experts.items()},
        relative_to=relative_to,
        heads=recipe.heads,
        allow_pickle=allow_pickle,
    )
    if check_hashes:
        checkpoints = {"base": family.base, **family.experts}
        for name, entry in {"base": recipe.base, **recipe.experts}.items():
            found = checkpoints[name].sha256()
            if entry.sha256 and entry.sha256 != found:
                raise RecipeError(
                    f"{name} ({entry.reference}) is not the model that this recipe was made for: its content hash is "
                    f"{found[:12]}..., the recipe says {entry.sha256[:12]}.... Point the recipe at the original, "
                    "or search again with the new one."
                )
    return family


def _model_to_dict(entry: ModelEntry) -> dict[str, str | None]:
    return {"reference": entry.reference, "sha256": entry.sha256, "revision": entry.revision}


def _direction(entry: Mapping[str, Any]) -> Direction:
    if "expert" in entry:
        return Direction(entry["name"], "expert")
    return Direction(entry["name"], "method", _METHOD.validate_python(entry["method"]))


def _check(recipe: Recipe, path: Path | str) -> None:
    seen: dict[str, str] = {}
    for group in recipe.groups:
        for tensor in group.tensors:
            if tensor in seen:
                raise RecipeError(f"{path}: tensor {tensor} is in group {seen[tensor]} and in group {group.name}.")
            seen[tensor] = group.name
    for direction in recipe.directions:
        if direction.kind == "expert" and direction.name not in recipe.experts:
            raise RecipeError(f"{path}: direction {direction.name} is not among the experts {list(recipe.experts)}.")
    for group, row in zip(recipe.groups, recipe.coefficients, strict=True):
        for direction, value in zip(recipe.directions, row, strict=True):
            if not math.isfinite(value):
                raise RecipeError(f"{path}: the coefficient of {direction.name} in group {group.name} is {value}.")

"""A recipe: everything needed to make one merged model again, as data.

It names the base and the experts with their content hashes, the directions that have coefficients, and one
coefficient for every (tensor group, direction). Groups speak the tensor names of the base's checkpoint on disk; one
that is cut has coefficients for every slice of its parameter, in a file beside the recipe. How a recipe looks in a
file, and the short form for writing one by hand, is in `recipe_file`.

    recipe = Recipe.load(Path("runs/first/recipe.yaml"))
    family = open_recipe(recipe, relative_to=Path("runs/first"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from optmerge.atomic import atomic_write
from optmerge.config.spectral import DirectionConfig
from optmerge.errors import RecipeError
from optmerge.merging.coefficients import CoefficientFn, Table
from optmerge.merging.recipe_slices import pack_slices, remove_others, slices_sha256

if TYPE_CHECKING:
    from optmerge.merging.slices import Cut
    from optmerge.models.family import Family

FORMAT = 1
EVERYTHING = "*"  # in the place of tensors' names: all that no other group has
HEADS = ("own", "merged", "zero-shot", "auto")
VOCABULARIES = ("refuse", "base", "common")
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model that a recipe is made of."""

    reference: str
    sha256: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Direction:
    """A delta that gets coefficients.

    Attributes:
        name: Unique within the recipe.
        kind: An expert's task vector, the delta that a whole ``method`` gives, or a ``part`` of it: what one expert has
            in a method that is linear in per-expert scales, or a band of singular components.
        config: The settings of the method, or of the bands.
        expert: Whose task vector or part it is; "" where it is of no one expert.
        band: Which of the bands, from 1; 0 where there are none.
        stored: Folder that holds the delta of a method that depended on calibration data.
        sha256: Hash of that folder's content.
    """

    name: str
    kind: Literal["expert", "method", "part"]
    config: DirectionConfig | None = None
    expert: str = ""
    stored: str | None = None
    sha256: str | None = None
    band: int = 0

    def __post_init__(self) -> None:
        if self.kind == "expert":
            object.__setattr__(self, "expert", self.name)

    @property
    def lane(self) -> str:
        """What it has in common with the same direction of other experts: its name without the expert's."""
        if self.kind == "expert":
            return "experts"
        return self.name.removesuffix(f":{self.expert}") if self.expert else self.name

    @property
    def whole(self) -> str:
        """What it is a part of: its name without expert and band."""
        return self.lane.removesuffix(f".{self.band}") if self.band else self.lane

    def to_dict(self) -> dict[str, Any]:
        """As a recipe file has it."""
        if self.kind == "expert":
            return {"name": self.name, "expert": self.name}
        body: dict[str, Any] = {"name": self.name, "method": self.config.model_dump() if self.config else None}
        if self.expert:
            body["expert"] = self.expert
        if self.band:
            body["band"] = self.band
        if self.stored is not None:
            body |= {"stored": self.stored, "sha256": self.sha256}
        return body


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share their coefficients.

    Attributes:
        name: Unique within the recipe.
        tensors: Names in the base's checkpoint on disk; ("*",) has all that no other group names.
        layer: Index of the transformer layer, None outside the layers or across them.
        kind: A role (attention, mlp, norm, embedding, final-norm, head, other), or "layer" or "model" when mixed.
        cut: How the one parameter that the tensors hold is cut into slices with coefficients of their own, each a row
            of the recipe's coefficients.
    """

    name: str
    tensors: tuple[str, ...]
    layer: int | None = None
    kind: str = "other"
    cut: Cut | None = None

    @property
    def count(self) -> int:
        """Rows of coefficients: 1, or one per slice."""
        return 1 if self.cut is None else self.cut.count


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A merge as data; see the module docstring. Values are frozen, ``coefficients`` is read-only.

    ``auto`` heads and dtype, and groups of the tensors "*", take their meaning from the models: `completed` puts it in.
    """

    base: ModelEntry
    experts: Mapping[str, ModelEntry]
    directions: tuple[Direction, ...]
    groups: tuple[Group, ...]
    coefficient_fn: CoefficientFn
    method: str = "task_arithmetic"
    heads: Literal["own", "merged", "zero-shot", "auto"] = "merged"
    dtype: str = "float32"
    tokenizer: str = "base"
    vocabulary: Literal["refuse", "base", "common"] = "refuse"
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

    @property
    def rows(self) -> tuple[slice, ...]:
        """The rows of the coefficients that each of ``groups`` has."""
        ends = list(accumulate(group.count for group in self.groups))
        return tuple(slice(end - group.count, end) for group, end in zip(self.groups, ends, strict=True))

    def to_yaml(self) -> str:
        """The recipe as YAML; floats keep every digit. Without what is beside it: see `files`."""
        return self.files("recipe.yaml")["recipe.yaml"].decode()

    def files(self, name: str) -> dict[str, bytes]:
        """The recipe as files, by name.

        Args:
            name: Of the recipe itself, which comes last. Before it comes one with the coefficients of slices, if any
                group is cut; the recipe names it.
        """
        table = self.coefficients
        names = [direction.name for direction in self.directions]
        body: dict[str, Any] = {
            "optmerge_recipe": FORMAT,
            "method": self.method,
            "base": _model_to_dict(self.base),
            "experts": {name: _model_to_dict(entry) for name, entry in self.experts.items()},
            "directions": [direction.to_dict() for direction in self.directions],
            "heads": self.heads,
            "dtype": self.dtype,
            "tokenizer": self.tokenizer,
            "vocabulary": self.vocabulary,
            "created": dict(self.created),
        }
        beside: dict[str, bytes] = {}
        cut = {group.name: table[at] for group, at in zip(self.groups, self.rows, strict=True) if group.cut is not None}
        if cut:
            file, content = pack_slices(Path(name).stem, cut)
            beside[file] = content
            body["slices"] = {"file": file, "sha256": slices_sha256(content)}
        body["groups"] = [
            _group_to_dict(group, names, table[at]) for group, at in zip(self.groups, self.rows, strict=True)
        ]
        text = yaml.safe_dump(body, sort_keys=False, width=120, allow_unicode=True)
        return {**beside, name: text.encode()}

    def save(self, path: Path) -> None:
        """Write the recipe atomically; what is stored in its folder is named relative to it."""
        folder = path.parent.absolute()
        directions = tuple(
            replace(direction, stored=Path(direction.stored).relative_to(folder).as_posix())
            if direction.stored is not None and Path(direction.stored).is_relative_to(folder)
            else direction
            for direction in self.directions
        )
        files = replace(self, directions=directions).files(path.name)
        for name, content in files.items():  # the recipe comes last: until then the one before it is whole
            atomic_write(path.with_name(name), content)
        remove_others(path, next((name for name in files if name != path.name), None))

    @classmethod
    def from_yaml(cls, text: str, path: Path | str = "recipe") -> Recipe:
        """Read a recipe back.

        Raises:
            RecipeError: The text is not a recipe, or one of another format; ``path`` is named.
        """
        from optmerge.merging.recipe_file import parse

        try:
            body = yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise RecipeError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
        return parse(body, path)

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
        except UnicodeDecodeError:
            raise RecipeError(
                f"{path} is not an optmerge recipe: it is no text. A run's best recipe is recipe.yaml in its folder."
            ) from None


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
        vocabulary=recipe.vocabulary,
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


def _group_to_dict(group: Group, directions: Sequence[str], rows: Table) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": group.name,
        "layer": group.layer,
        "kind": group.kind,
        "tensors": EVERYTHING if group.tensors == (EVERYTHING,) else list(group.tensors),
    }
    if group.cut is not None:
        return body | {"slices": group.cut.to_dict()}
    return body | {"coefficients": {name: float(value) for name, value in zip(directions, rows[0], strict=True)}}


def _model_to_dict(entry: ModelEntry) -> dict[str, str | None]:
    return {"reference": entry.reference, "sha256": entry.sha256, "revision": entry.revision}

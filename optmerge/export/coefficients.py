"""A recipe's numbers as a table that needs no optmerge to read: YAML, JSON or CSV, by the file's suffix.

Every tensor is named as in the base's checkpoint on disk, every direction by its name, and every model with its
content hash. Floats keep all their digits. The CSV is in long form, one line per tensor and direction.

    CoefficientsExporter().export(recipe, None, Path("coefficients.csv"))
    table = read_coefficients(Path("coefficients.csv"))      # {tensor: {direction: coefficient}}
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from optmerge.atomic import atomic_write
from optmerge.errors import RecipeError
from optmerge.export.base import Exporter, require_expressible, require_new_file
from optmerge.export.evidence import Evidence
from optmerge.merging.recipe import ModelEntry, Recipe
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family

FORMAT = 1
SUFFIXES = (".yaml", ".yml", ".json", ".csv")
COLUMNS = ("tensor", "direction", "coefficient", "group", "layer", "kind", "sha256")


class CoefficientsExporter(Exporter):
    """Coefficients per tensor and direction."""

    name: ClassVar[str] = "coefficients"
    summary: ClassVar[str] = "every coefficient with its tensor and direction, as .yaml, .json or .csv"
    needs_models: ClassVar[bool] = False

    def can_express(self, recipe: Recipe, family: Family | None) -> str | None:
        """Anything whose coefficients do not depend on the input, with one per tensor."""
        if not recipe.coefficient_fn.static:
            return "The recipe's coefficients depend on the input, so there is no table of them."
        sliced = [group for group in recipe.groups if group.cut is not None]
        if sliced:
            count = sum(group.count for group in sliced) * len(recipe.directions)
            return (
                f"The recipe has {count} coefficients of slices (columns, rows or chunks) of tensors, and a table has "
                "one line per tensor. They are float64 tensors [slices, directions] in the .slices file beside the "
                "recipe, which safetensors reads."
            )
        return None

    def export(
        self,
        recipe: Recipe,
        family: Family | None,
        to: Path,
        *,
        evidence: Evidence | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the table; see `Exporter.export`."""
        require_expressible(self, recipe, family)
        require_new_file(to, SUFFIXES)
        match to.suffix.lower():
            case ".csv":
                text = _to_csv(recipe)
            case ".json":
                text = json.dumps(_to_dict(recipe), indent=1, ensure_ascii=False) + "\n"
            case _:
                text = yaml.safe_dump(_to_dict(recipe), sort_keys=False, width=1000, allow_unicode=True)
        atomic_write(to, text)
        return to


def coefficient_table(recipe: Recipe) -> dict[str, dict[str, float]]:
    """Tensor name on the base's disk -> direction -> coefficient, in the recipe's order."""
    names = [direction.name for direction in recipe.directions]
    return {
        tensor: dict(zip(names, (float(value) for value in row), strict=True))
        for group, row in zip(recipe.groups, recipe.coefficients, strict=True)
        for tensor in group.tensors
    }


def read_coefficients(path: Path) -> dict[str, dict[str, float]]:
    """Read an exported table back, from any of its three forms.

    Raises:
        RecipeError: The file is missing or is not such a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            table: dict[str, dict[str, float]] = {}
            for line in csv.DictReader(io.StringIO(text)):
                table.setdefault(line["tensor"], {})[line["direction"]] = float(line["coefficient"])
            return table
        body = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
        return {
            tensor: {direction: float(value) for direction, value in row.items()}
            for tensor, row in body["coefficients"].items()
        }
    except FileNotFoundError:
        raise RecipeError(f"There is no coefficient table {path}.") from None
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as problem:
        raise RecipeError(f"{path} is not a coefficient table that optmerge wrote: {problem!r}.") from None


def _to_dict(recipe: Recipe) -> dict[str, Any]:
    return {
        "optmerge_coefficients": FORMAT,
        "formula": "merged = base + sum over directions of coefficient * delta; an expert's delta is expert - base",
        "base": _model(recipe.base),
        "experts": {name: _model(entry) for name, entry in recipe.experts.items()},
        "directions": {
            direction.name: {key: value for key, value in direction.to_dict().items() if key != "name"}
            for direction in recipe.directions
        },
        "heads": recipe.heads,
        "coefficients": coefficient_table(recipe),
    }


def _to_csv(recipe: Recipe) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group, row in zip(recipe.groups, recipe.coefficients, strict=True):
        layer = "" if group.layer is None else group.layer
        for tensor in group.tensors:
            for direction, value in zip(recipe.directions, row, strict=True):
                expert = recipe.experts.get(direction.name) if direction.kind == "expert" else None
                sha256 = (expert.sha256 or "") if expert else ""
                writer.writerow((tensor, direction.name, repr(float(value)), group.name, layer, group.kind, sha256))
    return table.getvalue()


def _model(entry: ModelEntry) -> dict[str, str | None]:
    return {"reference": entry.reference, "revision": entry.revision, "sha256": entry.sha256}

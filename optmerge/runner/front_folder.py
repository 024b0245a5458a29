"""A run's front on disk: front.json, and a recipe for every merge on it.

keep_front(front, folder, problem, driver="cma")
front = read_front(folder)                 # front.json's content, or None
path = folder.path / recipe_name(12)       # front/12.yaml, the recipe of record 12
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optmerge.atomic import disk_errors
from optmerge.errors import RunError
from optmerge.runner.folder import RunFolder
from optmerge.runner.front import FORMAT, Front

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem

FRONT = "front.json"


def recipe_name(record: int) -> str:
    """Where the recipe of a member lies in its run, by its record.

    >>> recipe_name(12)
    'front/12.yaml'
    """
    return f"front/{record}.yaml"


def keep_front(front: Front, folder: RunFolder, problem: Problem, *, driver: str) -> None:
    """Write the recipes of the merges on the front, and front.json when they are all there.

    Raises:
        RunError: The disk refuses.
    """
    place = folder.path / "front"
    with disk_errors(place):
        place.mkdir(exist_ok=True)
    for member in front.members:
        if not member.on_front:
            continue
        record = member.candidate
        assert record.vector is not None, "a candidate has its vector"
        created = {"run": folder.path.name, "driver": driver, "seed": problem.config.seed, "record": record.id}
        recipe = problem.deltas.kept_in(problem.in_stage(record.stage).recipe(record.vector, created), place)
        recipe.save(folder.path / recipe_name(record.id))
    folder.write_json(FRONT, front.to_dict())


def read_front(folder: RunFolder) -> dict[str, Any] | None:
    """The content of front.json, None where there is none.

    Raises:
        RunError: The file is damaged or of another format.
    """
    content = folder.read_json(FRONT)
    if content is not None and content.get("format") != FORMAT:
        raise RunError(
            f"{folder.path / FRONT} has format {content.get('format')!r}, and this version of optmerge reads {FORMAT}. "
            "Use the version in the run's manifest.json."
        )
    return content

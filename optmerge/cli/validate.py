"""``optmerge validate FILE``: is the search file right? Loads no weights and no model library."""

from __future__ import annotations

from pathlib import Path

from optmerge.cli.options import Json, SearchFile, Sets
from optmerge.cli.output import Output


def validate(file: SearchFile, sets: Sets = None, json: Json = False) -> None:
    """Check a search file, and list all that is wrong with it."""
    from optmerge.config.load import load_config
    from optmerge.config.schema import SearchConfig
    from optmerge.errors import ConfigError
    from optmerge.merging.alternatives import searched_directions
    from optmerge.merging.directions import known_directions
    from optmerge.merging.recipe import Recipe
    from optmerge.runner.own_methods import absolute_methods
    from optmerge.runner.terms import absolute_terms, check_terms

    config: SearchConfig = absolute_methods(load_config(file, overrides=sets or []), file.parent)
    missing = [
        f"  tasks.{task}.data: there is no file {file.parent / spec.data}."
        for task, spec in config.tasks.items()
        if _looks_local(spec.data) and not (file.parent / Path(spec.data).expanduser()).exists()
    ]
    if missing:
        raise ConfigError(f"{file} names data that is not there:\n" + "\n".join(missing))
    if config.space.recipe is not None:
        Recipe.load(file.parent / Path(config.space.recipe).expanduser())
    experts = list(config.experts)
    searched, chosen = searched_directions(config.directions, experts, config.method, config.alternatives)
    known_directions(searched if chosen is None else chosen.directions, config.baselines.methods, experts)
    stages = [config.at_stage(number) for number in range(len(config.stages))]
    for objective in [config.objective, *(stage.objective for stage in stages)]:
        check_terms(absolute_terms(objective, file.parent))
    models = {"base": config.base, **config.experts}
    places = {name: _place(reference, file.parent) for name, reference in models.items()}
    output = Output(json)
    output.facts({"valid": True, "models": places, "config": config.model_dump(mode="json")})
    output.say(f"{file} is valid.")
    output.table(["model", "reference", "read from"], [[name, models[name], places[name]] for name in models])
    over = ", ".join(direction.name for direction in searched)
    output.say()
    for number, stage in enumerate(stages, 1):
        terms = " + ".join(term.name for term in stage.objective.terms)
        which = f"stage {number}: " if len(stages) > 1 else ""
        output.say(f"{which}{stage.space.granularity} space over {over}, objective {terms}, driver {stage.driver.name}")
    output.say(f"{len(config.tasks)} tasks, output {file.parent / config.output}")
    output.say(f"Next: optmerge plan {file}")


def _looks_local(data: str) -> bool:
    return data.startswith((".", "/", "~")) or Path(data).suffix in (
        ".jsonl",
        ".json",
        ".csv",
        ".tsv",
        ".parquet",
        ".txt",
    )


def _place(reference: str, root: Path) -> str:
    """Where a model reference would be read from, by its form alone."""
    parts = [part.partition("@")[0] for part in reference.split("+")]
    return " + ".join("folder" if (root / Path(part).expanduser()).is_dir() else "Hugging Face Hub" for part in parts)

"""A configuration of mergekit-evolve as a search file: base, experts, space, driver and budget that say the same.

Its tasks are benchmarks with labels; the file has places for unlabelled inputs instead, and the tasks as `lm-eval`
terms in comments.

    translation = search_from_evolve(Path("evolve.yml"), to=Path("search.yaml"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from optmerge.config.reading import read_yaml
from optmerge.importers.evolve_config import EvolveConfig, Genome, parse_evolve
from optmerge.importers.evolve_space import Tensor, genome_space
from optmerge.importers.notes import Notes, comment
from optmerge.importers.references import expert_names, reference_from
from optmerge.importers.source import read_source
from optmerge.importers.translation import Translation

SIGMA, EVALUATIONS = 0.1667, 100  # --sigma0 (1/6) and --max-fevals of mergekit-evolve
DENSITIES = (0.1, 0.2, 0.5, 1.0)
DROPS = (0.5, 0.8)
_HIGH = 3.0  # weights have no upper bound there; beyond this no merge has been seen to work

TASKS = """
# Inputs of what each expert is for: jsonl, json, csv, tsv, parquet or txt, or a hub data set. PUT YOUR FILES HERE.
# mergekit-evolve looks at answers of benchmarks; optmerge needs inputs only, and no label is read by expert-kl.
# Prompts with answers: {data: ..., template: {prompt: "Question: {question}\\nAnswer:", completion: " {answer}"}}
tasks:
"""
OBJECTIVE = """
# The merge should behave on each task as its expert does: no labels. Instead of it, or beside it, the file's own tasks
# as terms (docs/lm-eval.md; pip install 'optmerge[lm-eval]'), each with a YAML file of the task on data of your own:
"""


def search_from_evolve(file: Path, *, to: Path, allow_pickle: bool = False) -> Translation:
    """Translate a configuration.

    Args:
        file: mergekit-evolve's YAML. Folders of models in it are relative to the working directory.
        to: Where the search file will be; it is not written.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors.

    Raises:
        ConfigError: It is no such configuration, or mergekit-evolve would refuse it.
        ModelError: The base is needed for the names of its tensors, and cannot be read.
    """
    notes = Notes()
    config = parse_evolve(read_yaml(read_source(file), source=str(file)), source=str(file), notes=notes)
    genome = config.genome
    base = genome.base_model or genome.models[0]
    # SLERP and the weighted mean are between the models: with the first one as the base they are within its space.
    names = expert_names(genome.models)
    folder = to.parent
    grouped = genome.layer_granularity >= 1 or bool(genome.filters)
    tensors = tensors_of(reference_from(base, folder), folder, allow_pickle=allow_pickle) if grouped else []
    space, unmatched = genome_space(genome, tensors)
    body: dict[str, Any] = {
        "version": 1,
        "base": reference_from(base, folder),
        "experts": {name: reference_from(reference, folder) for reference, name in names.items()},
    }
    _note_models(genome, base, names, notes)
    _note_space(genome, space, unmatched, notes)
    settings = _method(genome, notes) | {"space": _bounded(space, genome, base, names, notes)}
    _note_rest(config, notes)
    tokenizer = genome.tokenizer_source
    settings |= {
        "driver": {"name": "cma", "sigma": SIGMA},
        "budget": {"evaluations": EVALUATIONS},
        "tokenizer": names.get(tokenizer or "", "base"),
        "output": f"runs/{to.stem}",
    }
    parts = [_head(file, to, notes), _yaml(body), TASKS, _tasks(names), OBJECTIVE, _terms(config)]
    return Translation("".join([*parts, "objective: expert-kl\n\n", _yaml(settings)]), notes)


def tensors_of(base: str, folder: Path, *, allow_pickle: bool) -> list[Tensor]:
    """The base's parameters, and where they stand; from headers alone."""
    from optmerge.models.family import open_family

    family = open_family(
        base, {"itself": base}, relative_to=folder, heads="merged", allow_pickle=allow_pickle, check_values=False
    )
    found = []
    for name, parameter in family.parameters.items():
        role, disk = parameter.role, family.disk_names(name)[0]
        place = "layer" if role.layer is not None else "before" if role.kind == "embedding" else "after"
        found.append(Tensor(name, disk, place, role.layer))  # type: ignore[arg-type]
    return found


def _bounded(
    space: Mapping[str, Any], genome: Genome, base: str, names: Mapping[str, str], notes: Notes
) -> dict[str, Any]:
    """The space with its bounds and start; the expert that is the base has nothing to search."""
    between = genome.merge_method in ("linear", "slerp") or (
        genome.normalized and genome.merge_method == "task_arithmetic"
    )
    low, high = (-1.0 if genome.allow_negative_weights else 0.0), (1.0 if between else _HIGH)
    if between and genome.allow_negative_weights:
        high = 2.0
    notes.carry(
        "genome.allow_negative_weights",
        f"space.bounds: [{low:g}, {high:g}]; mergekit-evolve folds negative weights and does not tell its driver, "
        "here the driver knows its bounds (`bounds: fold` in driver has the other way)",
    )
    bounded: dict[str, Any] = {
        "granularity": space["granularity"],
        "bounds": [low, high],
        "start": round(1 / len(genome.models), 6),
    }
    bounded |= {key: value for key, value in space.items() if key != "granularity"}
    rules = list(space.get("rules", []))
    if base in names:
        rules.append({"match": "*", "direction": names[base], "freeze": 0.0})
    if rules:
        bounded["rules"] = rules
    return bounded


def _method(genome: Genome, notes: Notes) -> dict[str, Any]:
    """What the coefficients scale, and the method itself as a baseline."""
    method = genome.merge_method
    if method == "ties":
        notes.carry(
            "genome.merge_method",
            "ties: its trimmed vectors where they have the elected sign (ties-split) are what coefficients scale, and "
            "the driver chooses the density; the whole method is a baseline",
        )
        notes.leave("density per model and group", "here it is one number for all, chosen by the driver from a list")
        return {
            "methods": [{"name": "ties-split", "density": list(DENSITIES)}],
            "baselines": {"methods": [{"name": "ties", "density": 0.5, "compat": "mergekit"}]},
        }
    if method == "dare_ties":
        notes.carry(
            "genome.merge_method",
            "dare_ties: the driver chooses between its two halves, the random drop (dare) and the election of signs "
            "(ties-split), since both together are no sum of one part per expert; the whole method is a baseline",
        )
        notes.leave("density per model and group", "here it is one number for all, chosen by the driver from a list")
        return {
            "methods": [
                {"name": "ties-split", "density": list(DENSITIES)},
                {"name": "dare", "drop": list(DROPS), "compat": "mergekit"},
            ],
            "baselines": {"methods": [{"name": "dare-ties", "drop": 0.5, "compat": "mergekit"}]},
        }
    if method == "slerp":
        notes.carry("genome.merge_method", "slerp: coefficients along the straight line between the models")
        notes.leave(
            "the arc of slerp",
            "a coefficient per group cannot move along an arc; between fine-tunes of one model it is nearly straight "
            "(its middle is longer by 1 / cos of half the angle). The whole method at t 0.5 is a baseline",
        )
        if len(genome.models) > 2:
            notes.leave(
                "slerp's choice of two models per group", "here all of them may take part in every group; that has more"
            )
            return {}
        return {"baselines": {"methods": [{"name": "slerp", "t": 0.5, "compat": "mergekit"}]}}
    notes.carry("genome.merge_method", f"{method}: coefficients of the task vectors, without another method")
    return {}


def _note_models(genome: Genome, base: str, names: Mapping[str, str], notes: Notes) -> None:
    notes.carry("genome.models", "experts " + ", ".join(names.values()))
    if genome.base_model is None:
        notes.carry("genome.base_model", f"none is named; the first model is the base, {base}")
    else:
        notes.carry("genome.base_model", "base")
    if base in names:
        notes.carry(f"weight of {names[base]}", "it is the base: what the others leave to 1 is its share")
    if genome.merge_method == "linear" and genome.base_model and base not in names:
        notes.leave(
            "linear with a base outside of models", "mergekit-evolve fails at it; here the base has what is left to 1"
        )
    if genome.tokenizer_source is not None:
        notes.carry("genome.tokenizer_source", f"tokenizer: {names.get(genome.tokenizer_source, 'base')}")
        if genome.tokenizer_source not in ("base", base, *names):
            notes.leave(
                "genome.tokenizer_source (the vocabulary)",
                f"{genome.tokenizer_source}: the merged model keeps the base's; where the models' differ, "
                "`vocabulary: common` merges by token",
            )


def _note_space(genome: Genome, space: Mapping[str, Any], unmatched: list[str], notes: Notes) -> None:
    size = genome.layer_granularity
    if "polynomial" in space:
        degree = space["polynomial"]
        notes.carry("genome.smooth, genome.layer_granularity", f"space.polynomial: {degree}, of depth")
        notes.leave(
            "the shape of smooth",
            "mergekit joins its points by straight lines, optmerge by a polynomial with as many"
            + (" (the same for two)" if degree == 1 else "")
            + "; embeddings, final norm and head have variables of their own, instead of the first point's",
        )
        if genome.filters:
            notes.leave("genome.filters", "they are not joined with a polynomial; take smooth out to have both")
        return
    notes.carry(
        "genome.layer_granularity",
        f"{size}, space.granularity: {space['granularity']}"
        + (", with a rule for every group of layers: as many variables as there" if "rules" in space else ""),
    )
    if genome.smooth:
        notes.leave("genome.smooth", "there is one group of layers, so nothing to smooth")
    if genome.filters:
        notes.carry("genome.filters", "space.rules, the first filter last since here the last rule wins")
    for word in unmatched:
        notes.leave(f"genome.filters {word}", "no tensor's name has it; its weight would do nothing")


def _note_rest(config: EvolveConfig, notes: Notes) -> None:
    if config.genome.normalized and config.genome.merge_method in ("linear", "task_arithmetic"):
        notes.carry("genome.normalize", "true: what it can reach lies within these bounds, with less redundancy")
    elif config.genome.normalized and config.genome.merge_method in ("ties", "dare_ties"):
        notes.leave("genome.normalize", "true: here parts are added up, and the coefficients have the scale")
    elif config.genome.merge_method == "linear":
        notes.leave("genome.normalize", "false would scale the models as a whole; here the base always counts as 1")
    notes.carry("tasks, limit, num_fewshot, apply_chat_template", "lm-eval terms, as comments at `objective`")
    for task in config.tasks:
        if task.weight < 0:
            notes.carry(
                f"weight of {task.name}", "its absolute value: lm-eval says that lower is better, and that counts"
            )
    if config.shuffle:
        notes.leave("shuffle", "documents are divided by the hash of their content, and the same for every candidate")
    if config.random_init:
        notes.leave("random_init", "the search starts at the mean, and the best baselines are in its first generation")
    if config.apply_chat_template and not config.fewshot_as_multiturn:
        notes.leave("fewshot_as_multiturn", "the lm-eval term has no such setting")
    notes.carry("--sigma0, --max-fevals", f"driver.sigma: {SIGMA}, budget.evaluations: {EVALUATIONS} (their defaults)")
    notes.leave(
        "--strategy, --in-memory, --vllm", "one resident model is merged in place and judged for each candidate"
    )
    notes.leave("dtype bfloat16", "sums are made in float32 and rounded once, to the base's type")


def _tasks(names: Mapping[str, str]) -> str:
    return "".join(
        f"  {json.dumps(name)}: {{expert: {json.dumps(name)}, data: {json.dumps(f'data/{name}.jsonl')}, text: text}}\n"
        for name in names.values()
    )


def _terms(config: EvolveConfig) -> str:
    """The tasks as commented terms."""
    lines = ["objective:", "  terms:"]
    for task in config.tasks:
        term: dict[str, Any] = {
            "name": "lm-eval",
            "tasks": [f"tasks/{task.name}.yaml"],
            "metric": task.metric,
            "weight": abs(task.weight),
        }
        if config.limit is not None:
            term["limit"] = int(config.limit)
        if config.num_fewshot is not None:
            term["num_fewshot"] = config.num_fewshot
        term["chat_template"] = config.apply_chat_template
        lines.append(f"    - {yaml.safe_dump(term, default_flow_style=True, sort_keys=False, width=10_000).strip()}")
    return "".join(f"# {line}\n" for line in lines)


def _head(file: Path, to: Path, notes: Notes) -> str:
    said = f"Made from mergekit-evolve's {file.name} by `optmerge init --from-mergekit-evolve`. Fill in `tasks`, then:"
    commands = "".join(f"#   optmerge {verb} {to.name}\n" for verb in ("validate", "plan", "search"))
    return comment(said) + f"#\n{commands}#\n" + notes.comment()


def _yaml(body: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(body), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

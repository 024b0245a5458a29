"""What the pages' commands find in their folder: tiny models and data under the names that the pages use.

world = World(tmp_path)
world.begin("docs/publish.md", folder)     # puts there what the page takes for granted
"""

from __future__ import annotations

import shutil
from pathlib import Path

import optmerge
from tests.docs.pages import read_page
from tests.models.peft_adapters import train
from tests.tiny import make_model
from tests.zoo import make_zoo

MODELS, RECIPE, SEARCH, ZOO, NOTHING = "models", "recipe", "search", "zoo", "nothing"

# Page -> what is there before its first command: nothing; models/ and data/; these with search.yaml and the finished
# search runs/first; models and data of math and code with a recipe.yaml of theirs; or zoo/ with language models.
STARTS: dict[str, str] = {
    "README.md": MODELS,
    "CONTRIBUTING.md": NOTHING,
    "docs/api.md": SEARCH,
    "docs/explain.md": SEARCH,
    "docs/from-mergekit-evolve.md": RECIPE,
    "docs/front.md": SEARCH,
    "docs/index.md": MODELS,
    "docs/methods.md": SEARCH,
    "docs/optuna.md": SEARCH,
    "docs/own-method.md": MODELS,
    "docs/own-term.md": MODELS,
    "docs/pool.md": SEARCH,
    "docs/publish.md": SEARCH,
    "docs/recipes.md": ZOO,
    "docs/shell-and-editor.md": NOTHING,
    "docs/spaces.md": SEARCH,
    "docs/tutorial-compare.md": SEARCH,
    "docs/tutorial-first-search.md": NOTHING,
    "docs/tutorial-publish.md": SEARCH,
    "docs/verbs.md": SEARCH,
    "docs/wandb.md": SEARCH,
}

# Page -> what is replaced in it, so that tiny models finish in seconds: sizes, budgets, and models of the Hub.
CHANGES: dict[str, dict[str, str]] = {
    "README.md": {
        "splits: {fit: 180, select: 60, report: 500}": "splits: {fit: 24, select: 16, report: 30}",
        "budget: {evaluations: 60}": "budget: {evaluations: 4}",
    },
    "docs/from-mergekit-evolve.md": {
        "--set space.start=recipe.yaml": "--set space.start=recipe.yaml --limit 8 --budget 2"
        " --set splits.fit=24 --set splits.select=16 --set splits.report=30",
    },
    "docs/index.md": {
        "splits: {fit: 180, select: 60, report: 500}": "splits: {fit: 24, select: 16, report: 30}",
        "budget: {evaluations: 60}": "budget: {evaluations: 2}",
    },
    "docs/methods.md": {"--tune 20": "--tune 2"},
    "docs/pool.md": {"--keep 6": "--keep 2 --rounds 2"},
    "docs/recipes.md": {"org/code@v2": "zoo/code"},
    "docs/spaces.md": {
        "optmerge search FILE": "optmerge search search.yaml --output runs/masks",
        "bands: 8": "bands: 2",
    },
}


class World:
    """Makes each thing once, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, start: str, place: Path) -> None:
        """Put what ``start`` (a value of `STARTS`) means into an empty folder."""
        if start == NOTHING:
            return
        made = {MODELS: self._models, RECIPE: self._recipe, SEARCH: self._searched, ZOO: self._zoo}[start]()
        shutil.copytree(made, place, dirs_exist_ok=True)

    def _models(self) -> Path:
        made = self.folder / MODELS
        if not made.exists():
            zoo = make_zoo(self.folder / "classifiers", "bert")
            for old, new in {"one": "sentiment", "two": "topic"}.items():
                shutil.copytree(zoo / old, made / "models" / new)
                (made / "data").mkdir(exist_ok=True)
                shutil.copy(zoo / f"{old}.jsonl", made / "data" / f"{new}.jsonl")
            shutil.copytree(zoo / "base", made / "models" / "base")
        return made

    def _searched(self) -> Path:
        made = self.folder / SEARCH
        if not made.exists():
            shutil.copytree(self._models(), made)
            (made / "search.yaml").write_text(readme_search_file())
            optmerge.search(made / "search.yaml")
        return made

    def _recipe(self) -> Path:
        made = self.folder / RECIPE
        if not made.exists():
            shutil.copytree(self._models(), made)
            for old, new in {"sentiment": "math", "topic": "code"}.items():
                (made / "models" / old).rename(made / "models" / new)
                (made / "data" / f"{old}.jsonl").rename(made / "data" / f"{new}.jsonl")
            (made / "recipe.yaml").write_text(
                "{optmerge_recipe: 1, base: models/base, experts: {math: models/math, code: models/code},"
                " coefficients: {math: 0.4, code: 0.3}}"
            )
        return made

    def _zoo(self) -> Path:
        made = self.folder / ZOO
        if not made.exists():
            zoo = make_zoo(self.folder / "language", "llama")
            for old, new in {"base": "base", "one": "math", "two": "code"}.items():
                shutil.copytree(zoo / old, made / "zoo" / new)
            train(make_model("llama"), made / "zoo" / "chat-lora", target_modules=["q_proj"])
        return made


def readme_search_file() -> str:
    """The search file that the README shows, with its sizes as in `CHANGES`."""
    (block,) = [block for block in read_page("README.md", CHANGES["README.md"]).blocks("yaml") if block.file]
    return block.text

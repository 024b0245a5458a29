"""A run's winner beside its experts, on texts: what `optmerge try` shows. One resident model plays all the parts.

tryout = Tryout.open(Path("runs/first"))
for answer in tryout.answers(["a film to remember"]):
    answer.model, answer.text, answer.says
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optmerge.errors import ConfigError, RunError, did_you_mean
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import one_hot
from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import Direction, Recipe, open_recipe
from optmerge.merging.spread_engine import engine_over
from optmerge.models.architecture import GENERATIVE
from optmerge.models.cache import cache_dir
from optmerge.models.device import pick_dtype
from optmerge.models.family import Family
from optmerge.models.resident import ResidentModel
from optmerge.models.spread import Spread
from optmerge.models.tokenizer import tokenizer_for
from optmerge.runner.folder import RunFolder
from optmerge.runner.spreading import open_spread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MERGED = "merged"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model says to one text.

    Attributes:
        text: What was asked.
        head: Whose head answered; "" where all models have the same one.
        model: ``merged``, or an expert's name.
        says: A label, words with their tags, or what was generated.
        probability: Of the label; None elsewhere.
    """

    text: str
    head: str
    model: str
    says: str
    probability: float | None = None


class Tryout:
    """The resident model of a recipe, and the coefficients that make it the winner or one of the experts.

    Args:
        recipe: With references to ``family``.
        family: Base and experts.
        spread: Where the model is to be.
        dtype: Of its parameters.
    """

    def __init__(self, recipe: Recipe, family: Family, *, spread: Spread, dtype: torch.dtype) -> None:
        self.family = family
        if family.kind not in (*GENERATIVE, "sequence-classification", "token-classification"):
            raise ConfigError(f"These are {family.kind} models; `optmerge try` classifies or generates text.")
        self.tokenizer: PreTrainedTokenizerBase = tokenizer_for(family, recipe.tokenizer)
        self.device = spread.main
        self.resident = ResidentModel(family, device=spread, dtype=dtype)
        experts = [Direction(name, "expert") for name in family.experts]
        table = recipe.coefficients
        used = [direction for column, direction in enumerate(recipe.directions) if table[:, column].any()]
        directions = [*experts, *(direction for direction in used if direction.kind != "expert")]
        deltas = Deltas(family, directions, cache=cache_dir() / "directions")
        deltas.prepare()
        rows = rows_of_parameters(recipe, family)
        self.engine = engine_over(spread.parts(self.resident.parameters), deltas.segments, rows.first, cuts=rows.cuts)
        names = [direction.name for direction in directions]
        winner = np.zeros((len(table), len(names)))
        for column, direction in enumerate(recipe.directions):
            if direction.name in names:
                winner[:, names.index(direction.name)] = table[:, column]
        self.tables = {MERGED: winner} | {
            name: one_hot(len(table), len(names), column) for column, name in enumerate(family.experts)
        }

    @classmethod
    def open(cls, folder: Path, *, allow_pickle: bool = False) -> Tryout:
        """The winner of a run.

        Raises:
            RunError: There is no run, or it has no winner yet.
            UserError: Its models are missing or changed.
        """
        config = RunFolder.open(folder).config()
        if not (folder / "recipe.yaml").is_file():
            raise RunError(f"{folder} has no recipe.yaml yet: see `optmerge status {folder}`.")
        recipe = Recipe.load(folder / "recipe.yaml")
        family = open_recipe(recipe, relative_to=folder, allow_pickle=allow_pickle or config.allow_pickle)
        dtype = pick_dtype(config.dtype, family)
        return cls(recipe, family, spread=open_spread(config, family, dtype), dtype=dtype)

    def answers(self, texts: Sequence[str], *, expert: str | None = None, max_new_tokens: int = 64) -> Iterator[Answer]:
        """Answers of the merged model and of the experts, text by text.

        Args:
            texts: What to classify or to continue.
            expert: Only this expert, and with heads of their own only its head.
            max_new_tokens: Longest continuation, for language models.

        Raises:
            ConfigError: There is no such expert.
        """
        names = list(self.family.experts)
        if expert is not None and expert not in names:
            raise ConfigError(
                f"--expert is {expert!r}; expected one of {', '.join(names)}.{did_you_mean(expert, names)}"
            )
        shown = names if expert is None else [expert]
        own = self.family.heads == "own"
        # Model by model, not text by text: putting a model into memory costs more than asking it.
        said: dict[tuple[str, str, str], tuple[str, float | None]] = {}
        pairs = [(MERGED, head) for head in (shown if own else [""])] + [(name, name if own else "") for name in shown]
        for model, head in pairs:
            self.engine.apply(self.tables[model])
            module = self.resident.model_for(head or names[0])
            for text in texts:
                said[text, model, head] = self._ask(module, head or names[0], text, max_new_tokens)
        for text in dict.fromkeys(texts):
            for model, head in sorted(pairs, key=lambda pair: shown.index(pair[1]) if pair[1] else 0):
                says, probability = said[text, model, head]
                yield Answer(text, head, model, says, probability)

    @torch.inference_mode()
    def _ask(self, module: Any, who: str, text: str, max_new_tokens: int) -> tuple[str, float | None]:
        inputs = self.tokenizer(text, return_tensors="pt", truncation=True).to(self.device)
        if self.family.kind == "sequence-classification":
            probabilities = module(**inputs).logits[0].float().softmax(-1)
            best = int(probabilities.argmax())
            return str(self.family.configs[who].id2label[best]), float(probabilities[best])
        if self.family.kind == "token-classification":
            return self._tagged(module(**inputs).logits[0].argmax(-1).tolist(), who, text), None
        padding = self.tokenizer.pad_token_id
        produced = module.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id if padding is None else padding,
        )
        known = 0 if self.family.kind == "seq2seq-lm" else inputs["input_ids"].shape[1]
        return str(self.tokenizer.decode(produced[0, known:], skip_special_tokens=True)), None

    def _tagged(self, classes: Sequence[int], who: str, text: str) -> str:
        """The words of a text, each with the tag that its first token is given: ``in/O Paris/B-CITY``."""
        encoded = self.tokenizer(text, truncation=True)
        said = []
        for word in dict.fromkeys(word for word in encoded.word_ids() if word is not None):
            first, last = encoded.word_to_chars(word)
            tag = self.family.configs[who].id2label[classes[encoded.word_to_tokens(word).start]]
            said.append(f"{text[first:last].strip()}/{tag}")
        return " ".join(said)

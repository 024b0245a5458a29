"""Diverse examples for fit and select: representatives of a pool, told apart by what the base model makes of them.

    chosen = choose(embed, "topics", pool, documents, DiverseConfig(), {"fit": 32, "select": 16})
    chosen.positions["fit"]              # in the pool, rising

The pool is divided between the two splits before anything is chosen, so that none stands for the other's examples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from torch import Tensor

from optmerge.calibration.batches import Split
from optmerge.calibration.diverse import distinct, representatives
from optmerge.config.sampling import DiverseConfig
from optmerge.errors import DataError
from optmerge.models.cache import recall, remember
from optmerge.records import SplitName


class Embedder(Protocol):
    """Makes a vector of every example.

    Attributes:
        key: A hash of everything that the vectors depend on beside the examples.
    """

    key: str

    def __call__(self, task: str, examples: Split) -> Tensor:
        """[n, H], on any device: alike for examples that are alike to the model."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen from a pool.

    Attributes:
        positions: fit and select -> positions in the pool, rising.
        duplicates: How many of the pool were left out as near-duplicates.
    """

    positions: dict[SplitName, list[int]]
    duplicates: int


def choose(
    embed: Embedder,
    task: str,
    pool: Split,
    documents: Sequence[str],
    config: DiverseConfig,
    sizes: Mapping[SplitName, int],
) -> Chosen:
    """Choose the examples of fit and select; remembered, so that a run that is resumed has the same.

    Args:
        embed: What vectors are made with.
        task: Its name.
        pool: What is chosen from, in the order of content hashes and without labels.
        documents: Of each of its examples, what it is part of; no document is in two splits.
        config: Its settings.
        sizes: fit and select -> how many.

    Raises:
        DataError: The pool has too few examples that differ.
    """
    facts = [embed.key, pool.sha256, list(documents), config.model_dump(), sizes["fit"], sizes["select"]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    known = recall("samples", key)
    if known is not None:
        return Chosen(**known)
    vectors = embed(task, pool)
    kept = distinct(vectors, above=config.duplicate)
    border = max(sizes["select"], round(len(kept) * sizes["select"] / (sizes["fit"] + sizes["select"])))
    while 0 < border < len(kept) and documents[kept[border]] == documents[kept[border - 1]]:
        border += 1
    parts: dict[SplitName, list[int]] = {"select": kept[:border], "fit": kept[border:]}
    short = [split for split, part in parts.items() if len(part) < sizes[split]]
    if short:
        raise DataError(
            f"tasks.{task}.sampling: of the {pool.size} examples in its pool {len(kept)} differ (to the base, with "
            f"a cosine of {config.duplicate:g} at most); fit and select need {sizes['fit']} and {sizes['select']}. "
            "Raise sampling.duplicate or sampling.pool, give the task more data, or lower the splits."
        )
    chosen = Chosen(
        {
            split: sorted(part[place] for place in representatives(vectors[part], sizes[split]))
            for split, part in parts.items()
        },
        pool.size - len(kept),
    )
    remember("samples", key, asdict(chosen))
    return chosen

"""What a run knows about the recipe that is exported: its scores, its manifest, and where it was watched.

    evidence = Evidence.of_run(Path("runs/first"))       # None where there is no result
    evidence.row["report"]                               # task -> metric -> score of the exported merge
    provenance(recipe_text, evidence)                    # optmerge.json

A recipe that was written by hand has no evidence, and its exports show none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from optmerge.runner.folder import RunFolder
from optmerge.tracking.verdict import answer
from optmerge.tracking.view import RunView

PROVENANCE = "optmerge.json"
_WANDB = "wandb.json"  # what the view of W&B leaves in a run's folder: its id there, and online its page


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a recipe beside its coefficients.

    Attributes:
        result: A run's ``result.json``, with the exported merge as its row of the search.
        manifest: A run's ``manifest.json``; empty if there is none.
        answer: What the run has shown, as its report says it; empty if it says nothing of this merge.
        tracked_at: The page of the run at Weights & Biases; None if it was not tracked there, or offline.
    """

    result: Mapping[str, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""
    tracked_at: str | None = None

    @classmethod
    def of_run(cls, folder: Path) -> Evidence | None:
        """What lies in the folder of a run; None if there is no result in it.

        Raises:
            RunError: A file of the run is damaged.
        """
        run = RunFolder(folder)
        result = run.read_json("result.json")
        if result is None:
            return None
        return cls(
            result=result,
            manifest=run.read_json("manifest.json") or {},
            answer=answer(RunView.open(folder, vectors=False)) if (folder / "search.yaml").is_file() else "",
            tracked_at=(run.read_json(_WANDB) or {}).get("url"),
        )

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows that have report scores, baselines first."""
        return [row for row in self.result.get("rows", []) if row.get("report")]

    @property
    def row(self) -> Mapping[str, Any] | None:
        """The row of the exported merge; None if it was not scored on report."""
        return next((row for row in self.rows if row.get("kind") == "search"), None)

    @property
    def search(self) -> Mapping[str, Any]:
        """The search itself, as the manifest has it; empty if it has not."""
        found: Mapping[str, Any] = self.manifest.get("search") or {}
        return found


def provenance(recipe: bytes, evidence: Evidence | None) -> bytes:
    """The content of ``optmerge.json``: a manifest that ``optmerge search --reproduce`` reads, with the recipe in it.

    Args:
        recipe: The recipe's file. Coefficients of slices stay in the file beside it.
        evidence: Of the run; without one the manifest holds the version of optmerge alone.
    """
    manifest = dict(evidence.manifest) if evidence else {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it, is ten times faster
    content = {"versions": {"optmerge": version("optmerge")}} | manifest | {"recipe": yaml.load(recipe, Loader=loader)}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

"""The metadata of a model card, which the Hub reads: models, licence, tags, and the scores of the report split.

    data = card_metadata(recipe, family, inherited=inherit(family), evidence=evidence, mergekit=True)
    data.to_yaml()

https://huggingface.co/docs/hub/model-cards has the keys. Scores are in the form that huggingface_hub calls
``model-index``; their data set is called ``custom``, since calibration data are whatever a search was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optmerge.export.evidence import Evidence
from optmerge.export.licence import Inherited
from optmerge.export.references import hub_id
from optmerge.merging.recipe import Recipe

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from optmerge.models.family import Family

_PIPELINES = {
    "causal-lm": "text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "image-classification": "image-classification",
    "zero-shot-image-classification": "zero-shot-image-classification",
}


def card_metadata(
    recipe: Recipe, family: Family, *, inherited: Inherited, evidence: Evidence | None, mergekit: bool
) -> ModelCardData:
    """The front matter of a checkpoint's card.

    Args:
        recipe: What was merged.
        family: Its models.
        inherited: What they state of their licences.
        evidence: Where the scores are; none are stated without it.
        mergekit: Whether a mergekit config lies beside the card.
    """
    from huggingface_hub import ModelCardData

    names = [hub_id(checkpoint) for checkpoint in (family.base, *family.experts.values())]
    on_hub = [name for name in dict.fromkeys(names) if name]
    pipeline = "image-text-to-text" if family.sees else _PIPELINES.get(family.kind)
    scores = list(_scores(evidence, pipeline or family.kind)) if evidence else []
    licence = inherited.licence
    return ModelCardData(
        base_model=on_hub or None,
        base_model_relation="merge" if on_hub else None,
        library_name="transformers",
        license=_one_or_list(licence.ids) if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        pipeline_tag=pipeline,
        tags=["merge", *(["mergekit"] if mergekit else []), "optmerge"],
        model_name=title(recipe) if scores else None,
        eval_results=scores or None,
    )


def title(recipe: Recipe) -> str:
    """What a merge is called in its card."""
    return "A merge of " + ", ".join(recipe.experts)


def _one_or_list(ids: tuple[str, ...]) -> Any:
    """The Hub takes a list of licences, which the type of `ModelCardData` does not say."""
    return ids[0] if len(ids) == 1 else list(ids)


def _scores(evidence: Evidence, task_type: str) -> Iterator[EvalResult]:
    """Every finite metric of every task; the metric that the report leads with comes first, with its interval."""
    from huggingface_hub import EvalResult

    row = evidence.row
    if row is None:
        return
    main = row.get("metric", "accuracy")
    intervals = (row.get("interval") or {}).get("per_task", {})
    for task, metrics in row["report"].items():
        for metric in sorted(metrics, key=lambda name: name != main):
            value = metrics[metric]
            if value is None:
                continue
            yield EvalResult(
                task_type=task_type,
                task_name=task,
                dataset_type="custom",
                dataset_name=task,
                dataset_config=task,
                dataset_split="report",
                metric_type=metric,
                metric_name=_metric_name(metric, intervals.get(task) if metric == main else None, evidence, task),
                metric_value=value,
            )


def _metric_name(metric: str, interval: list[float] | None, evidence: Evidence, task: str) -> str:
    """``accuracy (95 % interval 0.70 to 0.81, 500 examples)``, as far as it is known."""
    splits: Mapping[str, int] = evidence.manifest.get("splits", {}).get(task, {})
    facts = [] if interval is None else [f"95 % interval {interval[1]:.4f} to {interval[2]:.4f}"]
    if "report" in splits:
        facts.append(f"{splits['report']} examples")
    return f"{metric} ({', '.join(facts)})" if facts else metric

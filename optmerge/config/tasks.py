"""The calibration data of a search file: each task's inputs, how a row becomes an example, how many go where.

TaskConfig(expert="sentiment", data="data/sentiment.jsonl", label="label")
SplitsConfig(fit=180, select=60, report=0.5)          # counts, or shares of the data
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from optmerge.config.base import Strict, named
from optmerge.config.sampling import RandomConfig, SamplingConfig


def _as_text(value: object) -> object:
    """Label values are compared as text, however the file has them (``0``, ``true``, ``spam``)."""
    return {str(key): index for key, index in value.items()} if isinstance(value, Mapping) else value


def _with_place(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"{template!r} has no {{}}, where the name of a class goes")
    return template


class TemplateConfig(Strict):
    """How a row becomes a language-model example; ``{column}`` is replaced by the row's value."""

    prompt: str = Field("", description="context that is not scored; a sequence-to-sequence model's input")
    completion: str = Field("{text}", description="text whose tokens are scored")
    chat: bool = Field(
        False, description="the prompt is a user's turn and the completion the answer, in the tokenizer's chat template"
    )


class TaskConfig(Strict):
    """One task's calibration data and the expert that knows it."""

    expert: str = Field(description="name of the expert whose behaviour the merge should keep on this data")
    data: str = Field(
        description="jsonl, json, csv, parquet or text file, a folder of images (with a sub-folder per class), or a "
        "hub data set id[:split]"
    )
    text: str = Field("text", description="column with the input")
    image: str = Field(
        "image", description="column with the image, for models of images: a path, the bytes of a file, or an array"
    )
    text_pair: str | None = Field(None, description="column with the second input of a pair")
    label: str | None = Field(
        None, description="column with the label; read for the report, and by labelled objectives only"
    )
    labels: Annotated[dict[str, int] | None, BeforeValidator(_as_text)] = Field(
        None, description="label value -> index in the expert's head; null = the head's own"
    )
    classes: list[str] | dict[str, str] | None = Field(
        None,
        description="with zero-shot heads, the names of the classes in the order of their labels, or label value -> "
        "name; null = the data set's own",
    )
    templates: list[Annotated[str, AfterValidator(_with_place)]] = Field(
        ["a photo of a {}."],
        min_length=1,
        description="with zero-shot heads, texts in which {} stands for a class's name; a class is the mean over them",
    )
    template: TemplateConfig | Literal["chat"] | None = Field(
        None,
        description="prompt and completion, for language models; chat: conversations in the tokenizer's chat template, "
        "of which the assistant's turns are scored",
    )
    messages: str = Field(
        "messages", description="with `template: chat`, column with lists of {role: ..., content: ...}"
    )
    max_tokens: int = Field(128, ge=2, description="inputs are cut to this many tokens")
    sampling: Annotated[SamplingConfig, BeforeValidator(named)] = Field(
        RandomConfig(), description="how fit and select examples are drawn: a name, or a mapping with a name"
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="long texts become windows of max_tokens that start every so many tokens, instead of being cut; "
        "each token is scored once, and no text is in two splits (causal language models)",
    )
    pack: bool = Field(
        False,
        description="put short examples into common rows of max_tokens; none sees another, so values are the same "
        "(causal language models)",
    )


def _sensible_size(size: int | float) -> int | float:
    if size <= 0 or (size >= 1 and size != int(size)):
        raise ValueError(f"{size} is no size; give a count (1, 2, ...) or a share between 0 and 1")
    return size


Size = Annotated[int | float, AfterValidator(_sensible_size)]


class SplitsConfig(Strict):
    """How many examples of each task go where: counts, or shares of the data."""

    fit: Size = Field(180, description="what the driver is told about")
    select: Size = Field(60, description="what decides which iterate is best")
    report: Size = Field(500, description="what the tables show; never steers anything")
    transductive: bool = Field(
        False,
        description="report holds the inputs of fit and select instead of its own, as in test-time adaptation; said in "
        "every result",
    )

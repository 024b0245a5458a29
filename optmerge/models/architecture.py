"""Which transformers class a config asks for, and an empty model of it: the tree, names and shapes, no values.

model = model_on_meta(config, "causal-lm")
model = model_on_meta(config, "other")       # the class that config.architectures names
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from optmerge.errors import ModelError
from optmerge.models.vision_tower import vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Kind = Literal[
    "causal-lm",
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
    "image-classification",
    "zero-shot-image-classification",
]
"""What a search can judge."""
ModelKind = Literal[Kind, "other"]
GENERATIVE: frozenset[ModelKind] = frozenset({"causal-lm", "seq2seq-lm"})  # they predict tokens, and can write

# Kind -> the Auto classes that make its models, the first that knows a config being taken. A vision-language model is
# a language model that can also be shown images.
AUTO_CLASSES: dict[ModelKind, tuple[str, ...]] = {
    "causal-lm": ("AutoModelForCausalLM", "AutoModelForImageTextToText"),
    "seq2seq-lm": ("AutoModelForSeq2SeqLM",),
    "sequence-classification": ("AutoModelForSequenceClassification",),
    "token-classification": ("AutoModelForTokenClassification",),
    "image-classification": ("AutoModelForImageClassification",),
}


def model_on_meta(
    config: PreTrainedConfig,
    kind: ModelKind,
    *,
    dtype: torch.dtype = torch.float32,
    architecture: str | None = None,
) -> nn.Module:
    """An empty model with its ties, on the meta device; the config is copied.

    Args:
        config: A transformers config.
        kind: Picks the Auto class; ``other`` takes the class that is named, ``zero-shot-image-classification`` the
            vision tower (see `vision_tower`).
        dtype: Of the parameters.
        architecture: Class name for ``other``; ``None`` takes the config's first architecture, or ``AutoModel``.

    Raises:
        ModelError: If transformers has no such class, or cannot build it from the config.
    """
    import transformers

    maker: Any
    named = architecture or next(iter(getattr(config, "architectures", None) or ()), None)
    config = copy.deepcopy(config)
    if kind == "zero-shot-image-classification":
        maker = vision_tower
    elif kind in AUTO_CLASSES:
        maker = _auto_class(config, kind).from_config
    elif named is None:
        maker = transformers.AutoModel.from_config
    elif hasattr(transformers, named):
        maker = getattr(transformers, named)._from_config
    else:
        raise ModelError(
            f"The checkpoint's config names the architecture {named!r}, which transformers {transformers.__version__} "
            "does not have. Code that comes with a checkpoint is not run; use a model that transformers knows."
        )
    try:
        with torch.device("meta"):
            model: nn.Module = maker(config, dtype=dtype)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as problem:
        what = " ".join(str(problem).split())
        raise ModelError(
            f"transformers cannot build a {config.model_type!r} model as {AUTO_CLASSES.get(kind, (named,))[0]}: {what}"
        ) from problem
    return model


def kind_of(config: PreTrainedConfig) -> ModelKind:
    """What the class that a config names is, going by transformers' Auto classes."""
    named = next(iter(config.architectures or ()), None)
    for kind, autos in AUTO_CLASSES.items():
        if kind == "causal-lm" and getattr(config, "is_encoder_decoder", False):
            continue  # some of them are among the image-text-to-text models
        if any(named in _classes(auto, config) for auto in autos):
            return kind
    return "other"


def _auto_class(config: PreTrainedConfig, kind: ModelKind) -> Any:
    """The Auto class of a kind that makes the class that a config names; else the first that knows the config."""
    import transformers

    named = next(iter(config.architectures or ()), None)
    known = [auto for auto in AUTO_CLASSES[kind] if _classes(auto, config)]
    exact = [auto for auto in known if named in _classes(auto, config)]
    return getattr(transformers, next(iter([*exact, *known, *AUTO_CLASSES[kind]])))


def _classes(auto: str, config: PreTrainedConfig) -> set[str]:
    """The names of the classes that an Auto class makes of configs of this type."""
    import transformers

    known = getattr(transformers, auto)._model_mapping.get(type(config), ())
    return {candidate.__name__ for candidate in (known if isinstance(known, tuple | list) else (known,))}


def body_prefix(model: nn.Module) -> str:
    """``"bert."`` for a model whose body is its attribute ``bert``; ``""`` for a bare body."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""

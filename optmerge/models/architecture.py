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

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ModelKind = Literal["causal-lm", "sequence-classification", "other"]

_AUTO_CLASSES = {"causal-lm": "AutoModelForCausalLM", "sequence-classification": "AutoModelForSequenceClassification"}


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
        kind: Picks the Auto class; ``other`` takes the class that is named.
        dtype: Of the parameters.
        architecture: Class name for ``other``; ``None`` takes the config's first architecture, or ``AutoModel``.

    Raises:
        ModelError: If transformers has no such class, or cannot build it from the config.
    """
    import transformers

    maker: Any
    named = architecture or next(iter(getattr(config, "architectures", None) or ()), None)
    config = copy.deepcopy(config)
    if kind in _AUTO_CLASSES:
        maker = getattr(transformers, _AUTO_CLASSES[kind]).from_config
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
            f"transformers cannot build a {config.model_type!r} model as {_AUTO_CLASSES.get(kind, named)}: {what}"
        ) from problem
    return model


def body_prefix(model: nn.Module) -> str:
    """``"bert."`` for a model whose body is its attribute ``bert``; ``""`` for a bare body."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""

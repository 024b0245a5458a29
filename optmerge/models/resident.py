"""The one model in memory that every candidate is written into.

The body's storage is allocated once, with tensors of our own (never a mapped file), and filled with the base's values.
With own heads, each expert's wrapper holds the same body object and a head of that expert's; wrappers are built on the
meta device, so no second body ever exists. A model that is spread over several devices is never whole on one of them.

    resident = ResidentModel(family, device=device, dtype=torch.float32)
    resident.parameters["bert.embeddings.word_embeddings.weight"]      # written in place by the engine
    logits = resident.model_for("sentiment")(**batch.inputs).logits
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from optmerge.errors import ModelError, did_you_mean
from optmerge.models.architecture import body_prefix, model_on_meta
from optmerge.models.device import to_device
from optmerge.models.spread import Spread
from optmerge.models.ties import untie

if TYPE_CHECKING:
    from optmerge.models.family import Family

_Read = Callable[[str], torch.Tensor]


class ResidentModel:
    """A family's shared body, with the base's values at first, and one full model per expert around it.

    Attributes:
        parameters: The merged parameters by name, tied ones once, in module order; contiguous, no gradient wanted.
    """

    def __init__(self, family: Family, *, device: torch.device | Spread, dtype: torch.dtype) -> None:
        """Allocate and fill the models.

        Args:
            family: Base, experts and their maps.
            device: Where the models live, or which devices have which parts of them.
            dtype: Of the parameters, save those that transformers always keeps in fp32.

        Raises:
            ModelError: If own heads are wanted of an architecture whose body cannot be told from its head.
            MissingExtraError: There are several devices, and accelerate is not installed.
        """
        self._family = family
        self._spread = spread = Spread.of(device)
        if family.heads == "own":
            self._models = self._with_own_heads(dtype)
        else:
            model = model_on_meta(family.configs["base"], family.kind, dtype=dtype)
            untie(model, family.parameters)
            _materialise(model, model.named_parameters(), self._reader("base"), spread)
            self._load_buffers(model, "", "base", family.maps["base"].buffers)
            self._models = {who: model for who in ("base", *family.experts)}
        distinct = list({id(model): model for model in self._models.values()}.values())
        for model in distinct:
            _initialise_buffers(model)
        for model in distinct:
            _move_buffers(model, spread)
            model.requires_grad_(False).eval()
        spread.carry(distinct)
        own = dict(distinct[0].named_parameters())
        self.parameters = {name: own[name] for name in family.parameters}

    def model_for(self, expert: str) -> nn.Module:
        """The full model that judges an expert's inputs: the shared body with that expert's head.

        With merged heads it is the same object for every expert, and for ``"base"``.

        Raises:
            ModelError: If there is no such expert.
        """
        if expert not in self._models:
            raise ModelError(
                f"There is no model for {expert!r}; there are models for {', '.join(self._models)}."
                f"{did_you_mean(expert, self._models)}"
            )
        return self._models[expert]

    def _reader(self, who: str) -> _Read:
        return lambda name: self._family.read(who, name)

    def _load_buffers(self, model: nn.Module, prefix: str, who: str, names: Iterable[str]) -> None:
        """Fill the persistent buffers below ``prefix`` that a checkpoint has (batch-norm statistics)."""
        for name in names:
            if name.startswith(prefix) and self._spread.device_of(name).type != "meta":
                owner, _, attribute = name.rpartition(".")
                module = model.get_submodule(owner)
                old = cast(torch.Tensor, module._buffers[attribute])
                value = torch.empty(old.shape, dtype=old.dtype).copy_(self._family.read(who, name))
                value._is_hf_initialized = True  # type: ignore[attr-defined]
                module._buffers[attribute] = value

    def _with_own_heads(self, dtype: torch.dtype) -> dict[str, nn.Module]:
        """One wrapper per expert, all around the body that the base's config describes."""
        family, spread = self._family, self._spread
        models: dict[str, nn.Module] = {}
        body: nn.Module | None = None
        for expert in family.experts:
            config = family.configs[expert]
            model = model_on_meta(config, family.kind, dtype=dtype)
            prefix = body_prefix(model)
            if not prefix:
                raise ModelError(
                    f"The experts have heads of their own, but {type(model).__name__} of {expert!r} has no body apart "
                    "from its head. Give experts with the same head, and merge the heads too."
                )
            if body is None:
                architecture = None if family.kind != "other" else type(model).__name__
                like_base = model_on_meta(family.configs["base"], family.kind, dtype=dtype, architecture=architecture)
                body = cast(nn.Module, getattr(like_base, prefix[:-1]))
                inside = ((prefix + name, parameter) for name, parameter in body.named_parameters())
                _materialise(like_base, inside, self._reader("base"), spread)
                self._load_buffers(like_base, prefix, "base", family.maps["base"].buffers)
            outside = [(name, value) for name, value in model.named_parameters() if not name.startswith(prefix)]
            _materialise(model, outside, self._reader(expert), spread)
            setattr(model, prefix[:-1], body)
            heads = [name for name in family.maps[expert].buffers if not name.startswith(prefix)]
            self._load_buffers(model, "", expert, heads)
            models[expert] = model
        return models


def fill(model: nn.Module, read: _Read, device: torch.device) -> nn.Module:
    """Give an empty model, of no family, its values: in evaluation mode, without gradients.

    Args:
        model: On the meta device.
        read: Parameter -> its value.
        device: Where it is to live.
    """
    spread = Spread.on(device)
    _materialise(model, model.named_parameters(), read, spread)
    _initialise_buffers(model)
    _move_buffers(model, spread)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def _materialise(model: nn.Module, parameters: Iterable[tuple[str, nn.Parameter]], read: _Read, spread: Spread) -> None:
    """Give meta parameters storage and values, each on its device; tied ones stay tied."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    fp32 = _kept_in_fp32(model)
    for name, parameter in list(parameters):
        dtype = torch.float32 if fp32(name) else parameter.dtype
        device = spread.device_of(name)
        value = torch.empty(parameter.shape, dtype=dtype, device=device)
        if device.type != "meta":  # there, shapes are all that is wanted
            value.copy_(read(name), non_blocking=True)
        real = nn.Parameter(value, requires_grad=False)
        real._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers then leaves the values alone
        for alias in names_of[id(parameter)]:
            owner, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(owner), attribute, real)


def _kept_in_fp32(model: nn.Module) -> Callable[[str], bool]:
    """Whether transformers keeps a parameter in fp32 whatever dtype is asked for, as it does on loading."""
    from transformers.core_model_loading import build_glob_alternation

    plan = cast(Any, model)._get_dtype_plan(next(model.parameters()).dtype)
    if not plan:
        return lambda name: False
    pattern, _, _ = build_glob_alternation(list(plan))
    return lambda name: pattern.search(name) is not None


@torch.no_grad()
def _initialise_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds (rotary frequencies, positions), as ``from_pretrained`` does.

    It is done on the CPU for every device, so that their values do not depend on it.
    """
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    cast(Any, model).initialize_weights()  # skips every tensor that is marked as initialised, so it draws no numbers


def _move_buffers(model: nn.Module, spread: Spread) -> None:
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = to_device(buffer, spread.device_of(f"{path}.{name}" if path else name))

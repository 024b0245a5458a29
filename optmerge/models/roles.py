"""What each parameter is for: embedding, attention, MLP, norm, final norm or head, and in which layer.

Roles come from the module tree (where the stacks of layers are, module classes, the model's own input and output
embeddings and its body), not from lists of names per architecture. Shapes suffice: the model may be on the meta device.

    roles(model)["model.layers.3.mlp.down_proj.weight"]      # Role(kind='mlp', layer=3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from optmerge.models.architecture import body_prefix

RoleKind = Literal["embedding", "attention", "mlp", "norm", "final-norm", "head", "other"]
Part = Literal["vision", "connector"]

# A module mixes tokens when its class, or the attribute that holds it, is called one of these.
_TOKEN_MIXERS = ("attention", "attn", "mixer", "mamba", "ssm", "deltanet", "shortconv")


@dataclass(frozen=True)
class Role:
    """What a parameter is for.

    Attributes:
        kind: ``norm`` is a norm within a layer, ``final-norm`` the one after the last layer; ``other`` is what fits
            nowhere else, such as a pooler or a layer scale.
        layer: Index of the transformer layer, from 0; ``None`` outside the layers. Stacks are numbered on in the order
            of the module tree, so an encoder's layers come before its decoder's; those of a vision tower beside a
            language model come last.
        part: In a vision-language model ``vision`` is the tower that sees images and ``connector`` what hands them to
            the language model; ``None`` is the language model, and any model without such parts.
    """

    kind: RoleKind
    layer: int | None
    part: Part | None = None


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter in ``model.named_parameters()``; tied ones appear once, under their first name."""
    tree = _Tree(model)
    return {name: tree.role(name, parameter) for name, parameter in model.named_parameters()}


def layer_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """The transformer layers; the one at index i is what `Role.layer` calls i."""
    layers, _ = _layers(model)
    return tuple(model.get_submodule(path) for path in sorted(layers, key=lambda path: layers[path]))


def decoder_layers(model: nn.Module, layers: Sequence[nn.Module]) -> frozenset[int]:
    """Which of a model's layers are in its decoder, if it has an encoder too; none otherwise."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return frozenset()
    encoder = {id(module) for module in cast(Any, model).get_encoder().modules()}
    return frozenset(index for index, layer in enumerate(layers) if id(layer) not in encoder)


def input_first(model: nn.Module) -> frozenset[str]:
    """The weights that are stored [in, out], or [experts, in, out], where a linear layer has [out, in].

    They belong to GPT-2's Conv1D, and to fused experts whose class says so of itself.
    """
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if type(module).__name__ == "Conv1D" or getattr(module, "is_transposed", False)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    )


class _Tree:
    """A model's module tree, with its layers found and numbered."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.position = {name: index for index, name in enumerate(self.modules)}
        self.layers, self.stages = _layers(model)
        self.vision, self.language = _towers(model)
        self.body = body_prefix(model)
        self.inputs = _embedding_ids(model, "get_input_embeddings")
        self.outputs = _embedding_ids(model, "get_output_embeddings")
        self.final_norms = self._final_norms()

    def role(self, name: str, parameter: nn.Parameter) -> Role:
        part = self._part(name, parameter)
        for path in _ancestors(name):
            if path in self.layers:
                return Role(self._kind_within(path, name), self.layers[path], part)
        for path in _ancestors(name):
            if path in self.stages:  # between the layers of a stage and those of the next
                return Role(self._kind_within(path, name), self.stages[path], part)
        return Role("other" if part == "connector" else self._kind_outside(name, parameter), None, part)

    def _part(self, name: str, parameter: nn.Parameter) -> Part | None:
        above = set(_ancestors(name))
        if not self.vision or above & self.language or id(parameter) in self.outputs:
            return None
        return "vision" if above & self.vision else "connector"

    def _kind_within(self, layer: str, name: str) -> RoleKind:
        owner = name.rpartition(".")[0]
        if _is_norm(self.modules[owner]):
            return "norm"
        inside = [path for path in _ancestors(name) if len(path) > len(layer)]
        if any(_mixes_tokens(path, self.modules[path]) for path in inside):
            return "attention"
        part = self.modules[inside[-1]] if inside else None  # the layer's own child
        weights = part.parameters() if part is not None else iter(())
        return "mlp" if any(weight.ndim > 1 for weight in weights) else "other"

    def _kind_outside(self, name: str, parameter: nn.Parameter) -> RoleKind:
        owner = name.rpartition(".")[0]
        if id(parameter) in self.inputs:
            return "embedding"
        if id(parameter) in self.outputs or not name.startswith(self.body):
            return "head"
        if owner in self.final_norms:
            return "final-norm"
        if _embeds(name) or isinstance(self.modules[owner], nn.Embedding) or self._before_layers(owner):
            return "embedding"
        return "other"

    def _before_layers(self, path: str) -> bool:
        """Whether a module is registered before the first of the layers that it shares the nearest parent with."""
        stack = self._stack_beside(path)
        return bool(stack) and self.position[path] < self.position[stack[0]]

    def _stack_beside(self, path: str) -> list[str]:
        """The layers below the nearest ancestor of a module that has any."""
        for ancestor in [*_ancestors(path), ""]:
            stack = [layer for layer in self.layers if layer.startswith(f"{ancestor}." if ancestor else "")]
            if stack:
                return stack
        return []

    def _final_norms(self) -> frozenset[str]:
        """Per stack, the last norm beside it that does not belong to the embeddings or to the head."""
        last: dict[str, str] = {}
        for path, module in self.modules.items():
            outside = not any(part in self.layers or part in self.stages for part in [*_ancestors(path), path])
            if outside and _is_norm(module) and path.startswith(self.body) and not _embeds(path):
                stack = self._stack_beside(path)
                if stack:
                    last[stack[0]] = path
        return frozenset(last.values())


def _layers(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Layer path -> index, and path of a stage that holds several layers -> index of its last one.

    Layers are the elements of module lists that each hold token mixing, or that transformers marks as its unit of
    gradient checkpointing; of nested ones (Swin's stages of layers) the innermost. A model with neither has the
    elements of its longest outermost list as layers.
    """
    lists = {
        name: list(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module
    }
    stacks = {name: elements for name, elements in lists.items() if all(_is_layer(element) for element in elements)}
    if not stacks and lists:
        outermost = {
            name: value for name, value in lists.items() if not any(part in lists for part in _ancestors(name))
        }
        longest = max(outermost, key=lambda name: len(outermost[name]))
        stacks = {longest: outermost[longest]}
    layers: dict[str, int] = {}
    stages: list[str] = []
    for name, elements in stacks.items():
        for index in range(len(elements)):
            path = f"{name}.{index}" if name else str(index)
            if any(inner.startswith(f"{path}.") for inner in stacks):
                stages.append(path)
            else:
                layers[path] = 0
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    vision, _ = _towers(model)
    position = {path: (bool(vision.intersection(_ancestors(path))), order.get(path, 0)) for path in layers}
    layers = {path: index for index, path in enumerate(sorted(layers, key=lambda path: position[path]))}
    last = {stage: max(index for path, index in layers.items() if path.startswith(f"{stage}.")) for stage in stages}
    return layers, last


def _towers(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Paths of a vision-language model's modules that see, and of those that speak; both empty for other models.

    They are told by their configs, of which the model's own has one for each.
    """
    config = getattr(model, "config", None)
    sees = getattr(config, "vision_config", None)
    speaks = config.get_text_config() if config is not None and sees is not None else None
    if speaks is None or speaks is config or not _embedding_ids(model, "get_output_embeddings"):
        return frozenset(), frozenset()

    def described_by(wanted: object) -> frozenset[str]:
        modules = model.named_modules()
        return frozenset(path for path, module in modules if isinstance(getattr(module, "config", None), type(wanted)))

    return described_by(sees), described_by(speaks)


def _is_layer(module: nn.Module) -> bool:
    if any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__):
        return True
    return any(_mixes_tokens(path, part) for path, part in module.named_modules() if path)


def _mixes_tokens(path: str, module: nn.Module) -> bool:
    called = (type(module).__name__ + " " + path.rpartition(".")[2]).lower()
    return any(word in called for word in _TOKEN_MIXERS) and not _is_norm(module)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(
        parameter.ndim > 1 for parameter in module.parameters(recurse=True)
    )


def _embeds(path: str) -> bool:
    """Whether a module on the path is called an embedding."""
    return any("emb" in part.lower() for part in path.split("."))


def _ancestors(name: str) -> Iterator[str]:
    """The paths of the modules above a name, nearest first, without the model itself."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _embedding_ids(model: nn.Module, getter: str) -> frozenset[int]:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return frozenset()
    return (
        frozenset(id(parameter) for parameter in module.parameters()) if isinstance(module, nn.Module) else frozenset()
    )

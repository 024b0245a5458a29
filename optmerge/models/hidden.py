"""What single transformer layers give, caught by forward hooks while a model runs.

    with layer_outputs(layer_modules(model), [5, 11]) as hidden:
        model(**inputs)
    hidden[11]                                  # [B, T, H]

Nothing else is kept: asking transformers for all hidden states would hold every layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from optmerge.errors import ModelError


@contextmanager
def layer_outputs(modules: Sequence[nn.Module], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Catch the outputs of some layers of every forward pass in the block; the last pass stands.

    They are part of the graph, and under checkpointing what the checkpointed layer gives.

    Args:
        modules: A model's layers in order, see `layer_modules`.
        layers: Indices of those that are wanted.

    Raises:
        ModelError: A layer gives something else than hidden states [B, T, H]. (In the block, from the model.)
    """
    caught: dict[int, Tensor] = {}
    hooks = [modules[layer].register_forward_hook(_catch(caught, layer)) for layer in layers]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def _catch(caught: dict[int, Tensor], layer: int) -> Callable[[nn.Module, object, object], None]:
    def hook(module: nn.Module, args: object, output: object) -> None:
        value = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(value, Tensor) or value.ndim != 3:
            found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"Layer {layer} ({type(module).__name__}) gives {found}, not hidden states [examples, positions, "
                "width]. Take terms that compare hidden states out of the objective, or name other layers."
            )
        caught[layer] = value

    return hook

"""Hidden states of several layers from one pass, with their gradients.

Shapes: B sentences, T tokens, C hidden size, L decoder blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from crossalign.models.hidden_states import find_blocks, hidden_states_at
from crossalign.models.streams import active_stream


def hidden_states_of(model: nn.Module, layers: Sequence[int], **inputs: Any) -> list[Tensor]:
    """(B, T, C) after each of the layers, as hidden_states_at gives them; no block past the last
    of them runs, and each block that does runs once."""
    places = [layer % (len(find_blocks(model)[1]) + 1) for layer in layers]
    states: dict[int, Tensor] = {}
    visit_layers(model, places, states.__setitem__, **inputs)
    return [states[place] for place in places]


def visit_layers(
    model: nn.Module, layers: Sequence[int], visit: Callable[[int, Tensor], None], **inputs: Any
) -> None:
    """Calls visit(layer, hidden states (B, T, C)) when the one forward passes each of the layers.

    layers: from 0 to L. Nothing is kept but what visit keeps.
    """
    _, blocks = find_blocks(model)
    last = max(layers)
    pending = sorted(set(layers) - {last})

    def hook(index: int) -> Any:
        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Also those whose own block was skipped, as Mllama's are for text.
            while pending and pending[0] <= index:
                hidden = args[0] if args else kwargs["hidden_states"]
                visit(pending.pop(0), active_stream(hidden, model))

        return blocks[index].register_forward_pre_hook(catch, prepend=True, with_kwargs=True)

    with ExitStack() as hooks:
        for index in range(min(layers), last):
            hooks.enter_context(hook(index))
        visit(last, hidden_states_at(model, last, **inputs))

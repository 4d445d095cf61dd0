"""Hidden states of several layers from one pass, with their gradients.

Shapes: B sentences, T tokens, C hidden size, L decoder blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from crossalign.models.encode import find_blocks, hidden_states_at


def hidden_states_of(model: nn.Module, layers: Sequence[int], **inputs: Any) -> list[Tensor]:
    """(B, T, C) after each of the layers, as hidden_states_at gives them; no block past the last
    of them runs, and each block that does runs once."""
    _, blocks = find_blocks(model)
    places = [layer % (len(blocks) + 1) for layer in layers]
    last = max(places)
    states: dict[int, Tensor] = {}

    def watch(place: int) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[place] = args[0] if args else kwargs["hidden_states"]

        return blocks[place].register_forward_pre_hook(keep, prepend=True, with_kwargs=True)

    with ExitStack() as hooks:
        for place in set(places) - {last}:
            hooks.enter_context(watch(place))
        states[last] = hidden_states_at(model, last, **inputs)
    return [states[place] for place in places]

"""From a model name to hidden states, sentence vectors and the next-token loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.models.hidden_states import hidden_states_at
    from crossalign.models.layer_states import hidden_states_of
    from crossalign.models.loading import choose_device, load_config, load_model
    from crossalign.models.next_token_loss import language_model_loss
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "choose_device": "loading",
            "hidden_states_at": "hidden_states",
            "hidden_states_of": "layer_states",
            "language_model_loss": "next_token_loss",
            "load_config": "loading",
            "load_model": "loading",
        },
    )

__all__ = [
    "choose_device",
    "hidden_states_at",
    "hidden_states_of",
    "language_model_loss",
    "load_config",
    "load_model",
]

"""Models whose states are no plain tuple of one (B, T, C) after every block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign.alignment.model import AlignmentModel
from crossalign.models.hidden_states import hidden_states_at
from crossalign.models.layer_states import hidden_states_of
from crossalign.models.output_head import check_output_head
from tests.support.tiny_models import HIDDEN, tiny_batch, tiny_model
from tests.support.unusual_models import BLOCKS, gemma3n, mllama


def block_outputs(model: Any, blocks: Any, batch: dict[str, Tensor]) -> list[Tensor | None]:
    """What each block returned in a plain forward; None for one that did not run."""
    outputs: list[Tensor | None] = [None] * len(blocks)

    def keep(index: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(keep(index)) for index, block in enumerate(blocks)]
    with torch.no_grad():
        model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs


def test_active_stream_of_gemma3n_is_taken() -> None:
    model, batch = gemma3n(), tiny_batch()
    outputs = block_outputs(model, model.model.layers, batch)
    with torch.no_grad():
        of_all = hidden_states_of(model, [1, 2, BLOCKS], **batch)
        for index, layer in enumerate((1, 2)):
            streams = outputs[layer - 1]
            assert streams is not None and streams.shape[0] == 3
            assert torch.equal(hidden_states_at(model, layer, **batch), streams[1])
            assert torch.equal(of_all[index], streams[1])
        assert of_all[2].shape == (*batch["input_ids"].shape, HIDDEN)
    loss = AlignmentModel(model, layer=2)(batch, tiny_batch(seed=2)).loss
    loss.backward()
    assert torch.isfinite(loss) and model.model.layers[0].mlp.up_proj.weight.grad.any()


@pytest.mark.parametrize("cross", [[1], [1, 2]])
def test_blocks_that_text_does_not_pass_keep_their_numbers(cross: list[int]) -> None:
    model, batch = mllama(cross), tiny_batch()
    outputs = block_outputs(model, model.model.layers, batch)
    assert [index for index, output in enumerate(outputs) if output is None] == cross
    expected = outputs[0]  # a block that does not run changes nothing
    with torch.no_grad():
        of_all = hidden_states_of(model, range(BLOCKS + 1), **batch)
        for layer in range(1, BLOCKS):
            expected = expected if outputs[layer - 1] is None else outputs[layer - 1]
            assert expected is not None
            assert torch.equal(hidden_states_at(model, layer, **batch), expected), layer
            assert torch.equal(of_all[layer], expected), layer


def test_head_is_compared_with_the_last_state_and_not_with_the_tuple() -> None:
    """Some models end `hidden_states` before the final norm; their loss is computable all the
    same."""
    model = tiny_model("llama")
    original = model.forward

    def untied(**inputs: Any) -> Any:
        output = original(**{**inputs, "output_hidden_states": True})
        output.hidden_states = (*output.hidden_states[:-1], 7 * output.hidden_states[-1])
        return output

    model.forward = untied
    check_output_head(model, tiny_batch()["input_ids"])
    text = {**tiny_batch(), "labels": tiny_batch()["input_ids"]}
    expected = original(**text).loss
    torch.testing.assert_close(AlignmentModel(model).next_token_loss(text), expected)

"""hidden_states_at against the model's own tuple, and what it runs."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossalign.models.encode import encode
from crossalign.models.hidden_states import hidden_states_at, num_layers
from tests.support.tiny_models import CONFIGS, LAYERS, tiny_batch, tiny_model, tiny_tokenizer

EVERY_LAYER = range(-LAYERS - 1, LAYERS + 1)


def own_states(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return model(**batch, output_hidden_states=True).hidden_states


def gradients(model: nn.Module, hidden: Tensor) -> list[Tensor | None]:
    """Of every parameter that is trained, for a loss that no symmetry of a norm flattens."""
    model.zero_grad()
    factors = torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)
    (hidden * factors).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def assert_same_gradients(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    """A parameter that the whole model did not use for this layer may have no gradient or zero."""
    assert any(gradient is not None for gradient in ours)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is None or other is None:
            assert mine is other
        else:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def with_lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    with warnings.catch_warnings():  # peft asks transformers 5.23 by a name that it deprecates
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return peft.get_peft_model(model, config)


class Calls:
    """Counts the calls of a model's blocks and of its output embedding."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.blocks = [0] * len(blocks)
        self.head = 0
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, index=index: self._block(index))
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: self._head())

    def _block(self, index: int) -> None:
        self.blocks[index] += 1

    def _head(self) -> None:
        self.head += 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_equals_the_own_tuple_of_the_model(name: str, side: str) -> None:
    model, batch = tiny_model(name), tiny_batch(side=side)
    expected = own_states(model, batch)
    assert num_layers(model) == LAYERS and len(expected) == LAYERS + 1
    for layer in EVERY_LAYER:
        assert torch.equal(hidden_states_at(model, layer, **batch), expected[layer]), layer
    # The test could not tell layers apart if they were alike.
    for before, after in itertools.pairwise(expected):
        assert before.shape != after.shape or not torch.allclose(before, after)


def test_a_head_that_is_called_decoder_hides_no_blocks() -> None:
    """get_decoder() of this model gives its output embedding, under which no block was found."""
    import transformers

    config = transformers.ModernBertDecoderConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        pad_token_id=1,
        bos_token_id=1,
        cls_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
    )
    model, batch = transformers.AutoModelForCausalLM.from_config(config).eval(), tiny_batch()
    expected = own_states(model, batch)
    for layer in EVERY_LAYER:
        assert torch.equal(hidden_states_at(model, layer, **batch), expected[layer])


def test_base_model_and_other_inputs() -> None:
    model, batch = tiny_model("llama"), tiny_batch(side="left")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
    inputs = {**batch, "inputs_embeds": embeddings, "position_ids": positions, "use_cache": True}
    expected = own_states(model, inputs)
    for layer in EVERY_LAYER:
        assert torch.equal(hidden_states_at(model, layer, **inputs), expected[layer])
        assert torch.equal(hidden_states_at(model.model, layer, **inputs), expected[layer])


@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize("name", ["gpt2", "bloom", "qwen3"])
def test_gradients_equal_those_of_the_whole_model(name: str, layer: int) -> None:
    model, batch = tiny_model(name), tiny_batch()
    ours = gradients(model, hidden_states_at(model, layer, **batch))
    assert_same_gradients(ours, gradients(model, own_states(model, batch)[layer]))


@pytest.mark.parametrize("layer", [1, LAYERS])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama"])
def test_gradient_checkpointing_changes_nothing(name: str, reentrant: bool, layer: int) -> None:
    model, batch = tiny_model(name), tiny_batch()
    expected = gradients(model, hidden_states_at(model, layer, **batch))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    # transformers 5.23 deprecates the name that 5.17 has.
    new_name = getattr(model, "activation_checkpointing_enable", None)
    (new_name or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    # A checkpoint left half open would take what `gradients` computes next for its own.
    assert_same_gradients(gradients(model, hidden_states_at(model, layer, **batch)), expected)


@pytest.mark.parametrize("layer", EVERY_LAYER)
def test_lora_adapters_take_part(layer: int) -> None:
    model, batch = with_lora(tiny_model("llama")).eval(), tiny_batch()
    hidden = hidden_states_at(model, layer, **batch)
    assert torch.equal(hidden, own_states(model, batch)[layer])
    if layer not in (0, -LAYERS - 1):
        ours = gradients(model, hidden)
        assert_same_gradients(ours, gradients(model, own_states(model, batch)[layer]))
        with model.disable_adapter():
            assert not torch.allclose(hidden, hidden_states_at(model, layer, **batch))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_autocast_and_bfloat16_equal_the_own_tuple(name: str) -> None:
    model, batch = tiny_model(name), tiny_batch()
    for context in (torch.autocast("cpu", torch.bfloat16), contextlib.nullcontext()):
        with context:
            expected = own_states(model, batch)
            for layer in EVERY_LAYER:
                assert torch.equal(hidden_states_at(model, layer, **batch), expected[layer])
        model.bfloat16()


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_train_mode_draws_the_dropout_of_the_model(layer: int) -> None:
    model, batch = tiny_model("gpt2").train(), tiny_batch()
    torch.manual_seed(5)
    expected = own_states(model, batch)[layer]
    torch.manual_seed(5)
    assert torch.equal(hidden_states_at(model, layer, **batch), expected)
    assert not torch.equal(hidden_states_at(model, layer, **batch), expected)  # it is live


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "bloom", "llama"])
def test_no_block_past_the_layer_and_no_head_runs(name: str) -> None:
    model, batch = tiny_model(name), tiny_batch()
    base: Any = model.base_model
    calls = Calls(model, base.layers if name == "llama" else base.h)
    for layer in range(LAYERS + 1):
        calls.blocks = [0] * LAYERS
        hidden_states_at(model, layer, **batch)
        # The pre-hook that counts stands behind the one that stops, so a stopped block counts 0.
        assert calls.blocks == [1] * layer + [0] * (LAYERS - layer)
    assert calls.head == 0
    model(**batch)
    assert calls.head == 1 and calls.blocks == [2] * LAYERS  # the counters do count


def num_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_no_hook_is_left_behind() -> None:
    model, batch = tiny_model("gpt2"), tiny_batch()
    own_states(model, batch)  # installs the hooks that transformers itself keeps
    before = num_hooks(model)
    for layer in EVERY_LAYER:
        hidden_states_at(model, layer, **batch)
        with pytest.raises(IndexError):
            hidden_states_at(model, layer, input_ids=batch["input_ids"] + 1000)
    assert num_hooks(model) == before
    assert model(**batch).logits.isfinite().all()


def test_layer_that_the_forward_skips_raises() -> None:
    model = tiny_model("xglm", layerdrop=1.0).train()
    with pytest.raises(RuntimeError, match=r"layer 1 was never reached .* XGLMForCausalLM"):
        hidden_states_at(model, 1, **tiny_batch())


@pytest.mark.parametrize("layer", [LAYERS + 1, -LAYERS - 2])
def test_layer_out_of_range_is_named(layer: int) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(
        ValueError, match=rf"hidden_states_at: layer must lie between -4 and 3.*{layer}"
    ):
        hidden_states_at(model, layer, **tiny_batch())
    with pytest.raises(ValueError, match=rf"encode: layer must lie between -4 and 3 .*{layer}"):
        encode(model, tiny_tokenizer(), [], layer=layer)


@pytest.mark.parametrize("layer", [1.0, "1", None, True])
def test_layer_of_the_wrong_type_is_named(layer: Any) -> None:
    with pytest.raises(TypeError, match="layer must be an integer, got"):
        hidden_states_at(tiny_model("gpt2"), layer, **tiny_batch())


def test_model_without_a_list_of_blocks_is_named() -> None:
    with pytest.raises(ValueError, match=r"model must be a Hugging Face .* got Linear"):
        hidden_states_at(nn.Linear(2, 2), 1)
    model = tiny_model("gpt2")
    model.config.n_layer = 7
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel must have one list of its 7 .* none"):
        hidden_states_at(model, 1, **tiny_batch())
    model.config.n_layer = LAYERS
    model.transformer.twins = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    with pytest.raises(ValueError, match="found several side by side"):
        hidden_states_at(model, 1, **tiny_batch())

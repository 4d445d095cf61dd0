"""ContrastiveLoss: fused_contrastive_loss as a module, which may learn its temperature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar  # of PyTorch's own requirements

from crossalign.argument_checks import (
    check_has_data,
    check_positive_finite,
    check_scalar,
    check_truth_value,
)
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.option_checks import check_options
from crossalign.contrastive.options import LossOptions
from crossalign.contrastive.terms import ContrastiveStats
from crossalign.distributed.group_owner import OwnsGroup

if TYPE_CHECKING:
    from typing import ParamSpec, Unpack

    from crossalign.contrastive.options import OptionKeywords, TermKeywords

    Given = ParamSpec("Given")
    Returned = TypeVar("Returned")

    def called_as(
        forward: Callable[Given, Returned],
    ) -> Callable[[Callable[..., Any]], Callable[Given, Returned]]:
        """Gives __call__ the types of forward: nn.Module declares that it takes and returns Any."""


# What a call returns: with return_stats the statistics too.
Result = TypeVar("Result", default=Tensor)


class LearnsTemperature(nn.Module):
    """Holds `logit_scale`, which stays in float32 when the module is cast to 16 bits.

    A step of an optimizer is below what bfloat16 can add to log(20): there it would stop learning.
    """

    logit_scale: nn.Parameter | None
    max_logit_scale: float

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        before = self.logit_scale
        kept: tuple[Tensor, Tensor | None] | None = None
        if before is not None:  # .data, since what the cast changes are the tensors themselves
            kept = before.data, None if before.grad is None else before.grad.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.logit_scale
        if after is not None and kept is not None and after.dtype.itemsize < kept[0].dtype.itemsize:
            value, grad = kept
            after.grad, after.data = None, value.to(after.device)
            if grad is not None:
                after.grad = grad.to(after.device)
        return self

    def learned_temperature(self, logit_scale: Tensor) -> Tensor:
        """() exp(-min(logit_scale, log(max_logit_scale))), with its gradient."""
        return (-logit_scale.clamp(max=math.log(self.max_logit_scale))).exp()


def start_logit_scale(
    function: str, temperature: float | Tensor, max_logit_scale: float
) -> nn.Parameter:
    """The parameter at its start; above its bound it would have no gradient and never learn."""
    check_scalar(function, "temperature", temperature, above_zero=True)
    if isinstance(temperature, Tensor):
        check_has_data(function, "temperature", temperature)
        temperature = temperature.detach()
    start = float(temperature)
    check_positive_finite(function, "temperature", start)
    if 1 / start > max_logit_scale * (1 + 1e-6):
        raise ValueError(
            f"{function}: temperature={start} starts below 1 / max_logit_scale = "
            f"{1 / max_logit_scale:g}, where it gets no gradient; use a higher temperature or a "
            f"max_logit_scale above {1 / start:g} (now {max_logit_scale:g})"
        )
    return nn.Parameter(torch.tensor(-math.log(start)))


class ContrastiveLoss(OwnsGroup, LearnsTemperature, Generic[Result]):
    """fused_contrastive_loss as a module; with learn_temperature it owns its logit scale.

    A deep copy shares the process group; a pickle leaves it out, and says so when it is loaded.

    Args:
        temperature: > 0, dimensionless; the start value when it is learned. A 0-d tensor gets its
            gradient otherwise, and an nn.Parameter is the module's.
        learn_temperature: own the parameter `logit_scale` = log(1 / temperature), used as
            exp(min(logit_scale, log(max_logit_scale))). It stays in float32 under .bfloat16().
        max_logit_scale: upper bound of 1 / temperature when learned.
        options: the keyword options of fused_contrastive_loss that are no embeddings, ids or
            weights.

    Raises:
        TypeError: an option is not one of fused_contrastive_loss, temperature no number or tensor.
        ValueError: as fused_contrastive_loss; max_logit_scale not above 0, or a learned temperature
            starts below 1 / max_logit_scale.

    Examples:
        >>> loss = ContrastiveLoss(0.07, learn_temperature=True)
        >>> loss(torch.randn(8, 4), torch.randn(8, 4)).backward()
        >>> loss.logit_scale.grad is None
        False
    """

    @overload
    def __init__(
        self: ContrastiveLoss[Tensor],
        temperature: float | Tensor = 0.05,
        *,
        learn_temperature: bool = False,
        max_logit_scale: float = 100.0,
        return_stats: Literal[False] = False,
        **options: Unpack[TermKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: ContrastiveLoss[tuple[Tensor, ContrastiveStats]],
        temperature: float | Tensor = 0.05,
        *,
        learn_temperature: bool = False,
        max_logit_scale: float = 100.0,
        return_stats: Literal[True],
        **options: Unpack[TermKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: ContrastiveLoss[Tensor | tuple[Tensor, ContrastiveStats]],
        temperature: float | Tensor = 0.05,
        *,
        learn_temperature: bool = False,
        max_logit_scale: float = 100.0,
        return_stats: bool,
        **options: Unpack[TermKeywords],
    ) -> None: ...
    def __init__(
        self,
        temperature: float | Tensor = 0.05,
        *,
        learn_temperature: bool = False,
        max_logit_scale: float = 100.0,
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__()
        unknown = options.keys() - set(LossOptions._fields)
        if unknown:
            raise TypeError(
                f"ContrastiveLoss: {sorted(unknown)[0]!r} is no option; the options are "
                f"{', '.join(LossOptions._fields)}"
            )
        given = LossOptions(**options)
        check_options("ContrastiveLoss", given)
        check_scalar("ContrastiveLoss", "temperature", temperature, above_zero=True)
        check_truth_value("ContrastiveLoss", "learn_temperature", learn_temperature)
        check_positive_finite("ContrastiveLoss", "max_logit_scale", max_logit_scale)
        self.max_logit_scale = float(max_logit_scale)
        self.logit_scale = None
        if learn_temperature:
            self.logit_scale = start_logit_scale(
                "ContrastiveLoss", temperature, self.max_logit_scale
            )
            temperature = 1.0  # what is in use is logit_scale
        self.fixed_temperature = temperature
        self.group = given.group
        self.options = given._replace(group=None)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use: a number where it is learned, else what was given."""
        if self.logit_scale is None:
            return self.fixed_temperature
        learned = self.learned_temperature(self.logit_scale.detach())
        return learned if learned.is_meta else float(learned)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        negative_owner: Tensor | None = None,
        weights: Tensor | None = None,
        guide_query: Tensor | None = None,
        guide_key: Tensor | None = None,
        guide_negatives: Tensor | None = None,
    ) -> Result:
        """The loss (and stats) of one batch; arguments as in fused_contrastive_loss."""
        temperature = self.fixed_temperature
        if self.logit_scale is not None:
            temperature = self.learned_temperature(self.logit_scale)
        options = self.options._replace(group=self.group)
        result = fused_contrastive_loss(
            query,
            key,
            negatives,
            temperature=temperature,
            ids=ids,
            negative_ids=negative_ids,
            key_ids=key_ids,
            negative_owner=negative_owner,
            weights=weights,
            guide_query=guide_query,
            guide_key=guide_key,
            guide_negatives=guide_negatives,
            **options._asdict(),
        )
        return cast(Result, result)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *given: Any, **named: Any) -> Any: ...

    def extra_repr(self) -> str:
        """The temperature in use and every option that is not the default."""
        told = {"temperature": self.temperature, "learn_temperature": self.logit_scale is not None}
        defaults = LossOptions()._asdict()
        given = self.options._replace(group=self.group)._asdict()
        told |= {name: value for name, value in given.items() if value is not defaults[name]}
        return ", ".join(f"{name}={value!r}" for name, value in told.items())


def _signature() -> inspect.Signature:
    """Of the class, with every option and its default, as help() and editors show it."""
    own = inspect.signature(ContrastiveLoss.__init__).parameters
    parameters = [own[name] for name in ("temperature", "learn_temperature", "max_logit_scale")]
    for name, default in LossOptions._field_defaults.items():
        kind = LossOptions.__annotations__[name].__forward_arg__
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
        )
    return inspect.Signature(parameters)


ContrastiveLoss.__signature__ = _signature()  # type: ignore[attr-defined]

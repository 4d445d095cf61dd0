"""MatryoshkaLoss: one embedding whose prefixes are embeddings too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from torch import Tensor, nn

from crossalign.argument_checks import check_finite, check_integer_number, check_tensor
from crossalign.contrastive.arguments import checked
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.module import ContrastiveLoss
from crossalign.contrastive.options import LossArguments, LossOptions
from crossalign.contrastive.prefix_walk import prefix_walk_loss, prefix_walk_takes

if TYPE_CHECKING:
    from crossalign.contrastive.module import called_as

_NAME = "MatryoshkaLoss"
_Result = TypeVar("_Result")  # of the loss


class MatryoshkaLoss(nn.Module, Generic[_Result]):
    """A loss summed over prefixes of the embeddings, so that they can be cut after training.

    loss = sum over d of weight_d * loss(query[:, :d], key[:, :d], negatives[:, :d]). Our losses
    scale every prefix to unit length again (normalize=True). Each prefix takes a pass of its own:
    their sizes mostly halve, so all together cost at most twice the whole. A plain loss of one
    direction on a CPU shares one walk over the features where that is shorter, as at D = 768.

    Args:
        loss: a loss of (query, key) or (query, key, negatives): ContrastiveLoss,
            fused_contrastive_loss, fused_sigmoid_loss, or any other of that form.
        dims: sizes of the prefixes, at least 1 each, none twice; the whole size is one of them
            if it should count.
        weights: of the prefixes, in their order; None: 1 for each.

    Raises:
        TypeError: loss cannot be called, a size is not an integer, or a weight no number.
        ValueError: sizes or weights do not fit.

    Source: Kusupati et al. 2022 (Matryoshka Representation Learning).

    Examples:
        >>> loss = MatryoshkaLoss(fused_contrastive_loss, [8, 4, 2])
        >>> loss(torch.randn(6, 8), torch.randn(6, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        loss: Callable[..., _Result],
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"{_NAME}: loss must be a loss such as ContrastiveLoss(), got {loss!r}")
        self.loss = loss
        self.dims = _numbers("dims", dims, check_integer_number, int)
        self.weights = (1.0,) * len(self.dims)
        if weights is not None:
            self.weights = _numbers("weights", weights, check_finite, float)
        if not self.dims or min(self.dims) < 1 or len({*self.dims}) < len(self.dims):
            raise ValueError(
                f"{_NAME}: dims must be different sizes of at least 1, got {list(dims)}"
            )
        if len(self.weights) != len(self.dims):
            raise ValueError(
                f"{_NAME}: weights must be one for each of the {len(self.dims)} dims, got "
                f"{len(self.weights)}"
            )

    def forward(
        self, query: Tensor, key: Tensor, negatives: Tensor | None = None, **options: Any
    ) -> _Result:
        """The sum over prefixes; options (ids, weights, ...) are for the loss.

        Returns:
            The loss; where the loss returns statistics too, those of the longest prefix beside it.

        Raises:
            ValueError: a prefix is longer than the embeddings.
        """
        sides = [query, key] if negatives is None else [query, key, negatives]
        for name, side in zip(("query", "key", "negatives"), sides, strict=False):
            check_tensor(_NAME, name, side)
            if side.dim() < 2:
                raise ValueError(f"{_NAME}: {name} must have shape (N, D), got {tuple(side.shape)}")
        longest = max(self.dims)
        if longest > query.shape[-1]:
            raise ValueError(
                f"{_NAME}: dims must be at most the {query.shape[-1]} features of query, "
                f"got {longest}"
            )
        arguments = _contrastive_arguments(
            self.loss, [side[..., :longest] for side in sides], options
        )
        if arguments is not None and prefix_walk_takes(arguments, self.dims):
            return cast(_Result, prefix_walk_loss(arguments, self.dims, self.weights))
        total: Any = 0
        stats: Any = None
        for dim, weight in zip(self.dims, self.weights, strict=True):
            value: Any = self.loss(*(side[..., :dim] for side in sides), **options)
            if isinstance(value, tuple):
                value, found = value
                stats = found if dim == longest else stats
            total = total + weight * value
        result: Any = total if stats is None else (total, stats)
        return cast(_Result, result)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *given: Any, **named: Any) -> Any: ...

    def extra_repr(self) -> str:
        return f"dims={list(self.dims)}, weights={list(self.weights)}"


def _contrastive_arguments(
    loss: Any, sides: Sequence[Tensor], options: dict[str, Any]
) -> LossArguments | None:
    """What fused_contrastive_loss would be given, checked, if it is the loss, and nothing that has
    to see the call stands before it."""
    if type(loss) is ContrastiveLoss:
        if loss.logit_scale is not None or loss.group is not None or _has_hooks(loss):
            return None
        given = loss.options._asdict() | {"temperature": loss.fixed_temperature}
        options = given | options
    elif loss is not fused_contrastive_loss:
        return None
    if not options.keys() <= {"temperature", *LossOptions._fields}:
        return None
    options = {"temperature": 0.05} | options
    named: dict[str, Any] = dict.fromkeys(LossArguments._fields)
    named |= zip(("query", "key", "negatives"), sides, strict=False)
    named["temperature"] = options.pop("temperature")
    if options.get("group") is not None:
        return None
    return checked(LossArguments(**named | {"options": LossOptions(**options)}))


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks)


def _numbers(
    name: str, given: Any, check: Callable[[str, str, Any], None], kind: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """The numbers of a list, a tuple or an array, each checked."""
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"{_NAME}: {name} must be a list of numbers, got {given!r}")
    for each in given:
        check(_NAME, f"each of {name}", each)
    return tuple(kind(each) for each in given)

"""fused_sigmoid_loss(): docstring, the loss of one process."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from crossalign.backends import Backend, choose_backend
from crossalign.contrastive.choices import Gather, Reduction
from crossalign.contrastive.combine import reduce_terms
from crossalign.contrastive.sigmoid.across_ranks import loss_across_ranks
from crossalign.contrastive.sigmoid.arguments import NAME, build_problem, check_arguments
from crossalign.contrastive.sigmoid.one_pass import one_pass_loss, one_pass_takes
from crossalign.contrastive.sigmoid.ops import sigmoid_sums
from crossalign.contrastive.sigmoid.problem import SigmoidArguments


def fused_sigmoid_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor,
    bias: float | Tensor,
    normalize: bool = True,
    ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    group: ProcessGroup | None = None,
    gather: Gather = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """The pairwise sigmoid loss of SigLIP, without ever holding the N x N logits.

    With s = 1 / temperature, x^ = x / max(||x||, 1e-12) if normalize else x: z[i, j] =
    s <q^_i, k^_j> + bias; y = 1 for j = i and for pairs of equal id, else -1; l_i = sum over j of
    -log sigmoid(y z[i, j]).

    Args:
        query: (N, D) float32, bfloat16, float16, or float64 (torch backend); CPU or CUDA.
        key: (N, D), dtype and device of query; key[i] is a positive of query[i].
        temperature: > 0, dimensionless; a 0-d tensor gets a gradient. SigLIP starts at 0.1.
        bias: added to every logit; a 0-d tensor gets a gradient. SigLIP starts at -10.
        normalize: cosine similarity if True, plain dot product if False.
        ids: (N,) integers; pairs of equal id are positives of one another.
        weights: (N,) non-negative weights w of the queries.
        reduction: "mean": sum w l / sum w; "sum": sum w l; "none": (N,) w l.
        group: torch.distributed process group over whose ranks the batch is spread; None: this
            process only.
        gather: with a group, how keys reach the other ranks: "auto", "all_gather" or "ring".
        backend: "auto": Triton on CUDA, PyTorch elsewhere and for float64; "triton"; "torch".

    Returns:
        The loss, float32 (float64 for float64 inputs), () or (N,). Gradients flow to query, key and
        tensors of temperature and bias, in their dtypes. With a group each rank returns W * its
        part of the whole batch's loss (W ranks), so that the mean over ranks is that loss, and
        gradients averaged over ranks are its gradients; "none" gives the rank's own terms.

    Raises:
        TypeError: an argument is not a tensor or number, or ids are not integers.
        ValueError: shapes, dtypes, devices, values or options do not fit; the message names them.
            Values of CUDA tensors are read only when CROSSALIGN_CHECK=1, since that stalls.
            With a group, arguments that differ between ranks: the same text on every rank.
        RuntimeError: a rank of the group died, or did not call in time.

    Cost: 2 N^2 D operations forward, up to 6 N^2 D backward, in PyTorch
    4 for a mean or a sum, whose gradients are formed with it; extra memory O(N D) plus a bounded
    workspace. Deterministic: same inputs and device, same bits. Differentiating twice raises.
    Source: Zhai et al. 2023 (SigLIP); reference.sigmoid_loss is the specification.

    Examples:
        >>> image, text = torch.randn(2, 8, 4, requires_grad=True)
        >>> fused_sigmoid_loss(image, text, temperature=0.1, bias=-10.0).shape
        torch.Size([])
    """
    arguments = SigmoidArguments(
        query=query,
        key=key,
        temperature=temperature,
        bias=bias,
        normalize=normalize,
        ids=ids,
        weights=weights,
        reduction=reduction,
        group=group,
        gather=gather,
        backend=backend,
    )
    if group is not None:
        return loss_across_ranks(arguments)
    check_arguments(arguments)
    use_triton = choose_backend(NAME, backend, query) == "triton"
    problem = build_problem(arguments)
    if not use_triton and one_pass_takes(query, key, problem, weights, reduction):
        return one_pass_loss(query, key, problem, weights, reduction)
    sums = sigmoid_sums(query, key, problem, use_triton=use_triton)
    return reduce_terms(sums.terms, weights, reduction)

"""Losses of other libraries with the same names and arguments, one module per library.

    from crossalign.integrations.sentence_transformers import MultipleNegativesRankingLoss
    from crossalign.integrations.open_clip import ClipLoss, SigLipLoss
    from crossalign.integrations.lightly import NTXentLoss
    from crossalign.integrations.pytorch_metric_learning import NTXentLoss, SupConLoss

Each class is a subclass of its namesake, in which the fused loss takes the place of the matrix of
logits. A module imports its library, so the names stay in the modules.
"""

__all__: list[str] = []

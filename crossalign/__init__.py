"""crossalign: fused contrastive kernels and a training loop that align a model's languages."""

__version__ = "0.1.0"

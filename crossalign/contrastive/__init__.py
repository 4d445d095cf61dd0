"""The contrastive loss: options, sums, losses, gradients, in PyTorch and over Triton kernels."""

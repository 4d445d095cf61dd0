"""The pairwise sigmoid loss: function, checks, ops, chunked PyTorch passes, the loss over ranks."""

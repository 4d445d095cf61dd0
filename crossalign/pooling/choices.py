"""The names of what makes a sentence vector, for settings and checks that need no PyTorch."""

POOLINGS = ("mean", "last", "max")  # how token vectors become one
POOL_TOKENS = ("all", "content")  # which tokens count; content: without special tokens
CENTERS = ("none", "batch", "side")  # the mean that is subtracted

"""Training data: translation pairs, instruction items, and the builders that make them."""

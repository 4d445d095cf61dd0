"""From a model name to hidden states, sentence vectors and the next-token loss."""

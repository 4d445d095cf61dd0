"""The shape of a model's representation space: measured, drawn and reported."""

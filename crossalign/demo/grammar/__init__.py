"""The grammar that writes the demo corpus in four languages."""

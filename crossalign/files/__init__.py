"""Reading and writing: lines of text by number, outputs that appear whole or not at all."""

"""`crossalign demo`: a made-up parallel corpus, a tiny language model, before and after."""

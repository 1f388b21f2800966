"""How the embedded models are made: a pool of rendered scenes, a tokenizer, a CLIP in two stages and a SAM2."""

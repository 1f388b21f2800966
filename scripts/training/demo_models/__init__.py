"""Training of the embedded models: a pool of rendered scenes, a tokenizer, CLIP, SAM2 and the inpainting pipeline."""

"""Open-vocabulary segmentation of whole folders: a list of words in, masks for every image out."""

__version__ = "0.1.0"

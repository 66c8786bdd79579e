"""Training: captions and pictures in, a model folder out."""

"""The losses of the image tokenizer: what a reconstruction is compared by."""

__all__ = ["adversarial", "colour", "crops", "perceptual", "reconstruction"]

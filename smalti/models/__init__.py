"""The networks and their configurations."""

__all__ = ["bart", "bart_config", "clip", "configuration", "layers", "vqgan", "vqgan_config"]

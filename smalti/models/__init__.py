"""The networks and their configurations."""

__all__ = [
    "bart",
    "bart_config",
    "clip",
    "configuration",
    "layers",
    "open_clip_models",
    "refiner",
    "refiner_config",
    "vqgan",
    "vqgan_config",
]

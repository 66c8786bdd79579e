"""The networks and their configurations."""

__all__ = [
    "bart",
    "bart_config",
    "clip",
    "configuration",
    "layers",
    "refiner",
    "refiner_config",
    "vqgan",
    "vqgan_config",
]

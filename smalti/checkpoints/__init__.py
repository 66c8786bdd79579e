"""Files of weights: reading every supported format, and writing safetensors."""

__all__ = ["loading", "names", "safetensors"]

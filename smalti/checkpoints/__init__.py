"""Files of weights: reading every supported format, and writing safetensors."""

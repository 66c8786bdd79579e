"""Files of weights: every format that is read, the names of tensors in each, and our own format, safetensors."""

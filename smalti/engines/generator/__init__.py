"""The image-token generator: many requests in one batch."""

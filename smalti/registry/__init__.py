"""Model folders: what they say of themselves, whether their parts fit, how they are found and made."""

__all__ = ["folder", "huggingface", "importing", "library", "manifest", "routes", "spec", "stored", "verify"]

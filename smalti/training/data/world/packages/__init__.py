"""The pinned packages of pictograms and their names: installing, reading, crediting."""

__all__ = ["licences", "pictograms", "words"]

"""The files of pictures: their formats, and their signed URLs."""

from smalti.services.web.pictures.formats import OutputFormat, converted, small_webp
from smalti.services.web.pictures.links import PATH, Links, PictureLink

__all__ = ["PATH", "Links", "OutputFormat", "PictureLink", "converted", "small_webp"]

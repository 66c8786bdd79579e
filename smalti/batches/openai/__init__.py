"""OpenAI's Batch API: its requests as rows of a batch, and its answers."""

from smalti.batches.openai.answers import AnswerContext, AnswerCounts, write_answers
from smalti.batches.openai.quality import DEFAULT_COUNT, Quality, candidates_of, file_quality, quality_name
from smalti.batches.openai.requests import (
    EDITS,
    ENDPOINTS,
    GENERATIONS,
    MAX_LINE,
    OpenAIOptions,
    OpenAIReader,
    OpenAIRequest,
    data_url_content,
    first_request,
)

__all__ = [
    "DEFAULT_COUNT",
    "EDITS",
    "ENDPOINTS",
    "GENERATIONS",
    "MAX_LINE",
    "AnswerContext",
    "AnswerCounts",
    "OpenAIOptions",
    "OpenAIReader",
    "OpenAIRequest",
    "Quality",
    "candidates_of",
    "data_url_content",
    "file_quality",
    "first_request",
    "quality_name",
    "write_answers",
]

"""The operator's policy on what may be drawn: a list of words and patterns, and a hook that is asked."""

__all__ = ["content_policy", "hooks", "word_list"]

"""Data sets: pictures and captions, made, cleaned, split and encoded."""

"""Data sets: pictures and captions, made, cleaned, split and encoded.

Composed pictures, made while training runs:

    world = World.load(Path("data/world"), resolution=64)   # what `smalti data build` wrote
    dataset = CompositionDataset(world, seed=0, split="train")
    pixels, captions, attributes = dataset.batch(start=0, count=64)

`pixels` is uint8 `[count, height, width, 3]`, `captions` a list of texts, `attributes` a list of
`Attributes`. Sample i is the same whatever batch it comes in. The splits are "train", "validation"
(combinations that training sees, in pictures it does not) and "held_out" (combinations it never sees).
"""

"""The stages of a batch as compute: from the prompts of a shard to its files, without a network.

`encode_shard` and `generate_shard` return what a stage has made of all prompts. `decode_shard`, `rank_shard` and
`refine_shard` are streams, which hold the pictures of one prompt at a time; `write_output` ends them. So in one process

    write_output(rank_shard(decode_shard(prompts, tokens, ...), ...), path, ...)

is the whole way. Between services, `write_pictures` and `read_pictures` are in between. The door names modules, since
each needs the libraries of one stage alone.
"""

__all__ = [
    "decoding",
    "encoding",
    "encodings",
    "generating",
    "output",
    "pictures",
    "ranking",
    "readings",
    "refining",
    "tokens",
]

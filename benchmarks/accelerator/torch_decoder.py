"""A plain decoder of the same shape in torch, with cached keys and values, to compare with.

It computes in bfloat16 on a GPU with `scaled_dot_product_attention`, attends only over the positions that are there,
projects the prompt once, and is timed twice: as it is, and with each step recorded as a CUDA graph, which spares the
time for starting its kernels one by one.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import Times, measure
from smalti.models.bart_config import DalleBartConfig

GUIDANCE, TOP_K = 16.0, 256
BLOCKS = 4
"""Number of graphs; each attends over as many positions as its last step needs."""


class Attention(nn.Module):
    """The products of an attention; keys and values are kept by the layer."""

    def __init__(self, config: DalleBartConfig) -> None:
        super().__init__()
        self.heads = config.decoder_attention_heads
        self.q, self.k, self.v, self.out = (
            nn.Linear(config.d_model, config.d_model, bias=False) for _ in range(4)
        )

    def split(self, x: Tensor) -> Tensor:
        """Returns `[rows, heads, positions, head_size]`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attends from one position over keys and values."""
        attended = functional.scaled_dot_product_attention(
            self.split(self.q(x)), keys, values, attn_mask=mask
        )
        return self.out(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """One decoder layer with its cache."""

    def __init__(self, config: DalleBartConfig, rows: int) -> None:
        super().__init__()
        d_model, ffn = config.d_model, config.decoder_ffn_dim
        self.attention, self.cross = Attention(config), Attention(config)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(5))
        self.inner_norm = nn.LayerNorm(ffn)
        self.gate, self.linear = nn.Linear(d_model, ffn, bias=False), nn.Linear(d_model, ffn, bias=False)
        self.down = nn.Linear(ffn, d_model, bias=False)
        size = (rows, self.cross.heads, config.image_length, d_model // self.cross.heads)
        self.keys, self.values = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.zeros(size))
        text = (rows, config.max_text_length, d_model)
        self.prompt_keys = nn.Buffer(self.cross.split(self.cross.k(torch.randn(text))))
        self.prompt_values = nn.Buffer(self.cross.split(self.cross.v(torch.randn(text))))

    def forward(self, x: Tensor, position: Tensor, limit: int, mask: Tensor | None) -> Tensor:
        """Runs one position, and attends over the first `limit` ones that `mask` allows."""
        h, attention = self.norms[0](x), self.attention
        self.keys.index_copy_(2, position, attention.split(attention.k(h)))
        self.values.index_copy_(2, position, attention.split(attention.v(h)))
        attended = attention(h, self.keys[:, :, :limit], self.values[:, :, :limit], mask)
        x = x + self.norms[1](attended)
        x = x + self.norms[3](self.cross(self.norms[2](x), self.prompt_keys, self.prompt_values, None))
        h = self.norms[4](x)
        return x + self.down(self.inner_norm(functional.gelu(self.gate(h)) * self.linear(h)))


class Decoder(nn.Module):
    """The decoder, its slots and their tokens."""

    def __init__(self, config: DalleBartConfig, slots: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.image_vocab_size + 1, config.d_model)
        self.embed_positions = nn.Embedding(config.image_length, config.d_model)
        self.norm, self.final_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList(Layer(config, 2 * slots) for _ in range(config.decoder_layers))
        self.head = nn.Linear(config.d_model, config.decoder_start_token_id, bias=False)
        self.tokens = nn.Buffer(torch.zeros(slots, config.image_length + 1, dtype=torch.long))
        self.position = nn.Buffer(torch.zeros(1, dtype=torch.long))
        self.begin()

    def begin(self) -> None:
        """Starts new pictures."""
        self.position.zero_()
        self.tokens[:, 0] = self.config.decoder_start_token_id

    def forward(self, limit: int, *, masked: bool) -> None:
        """Generates the next token of each slot.

        Args:
            limit: number of positions to attend over.
            masked: whether some of them do not exist yet.
        """
        mask = None
        if masked:
            mask = (torch.arange(limit, device=self.position.device) <= self.position)[None, None, None]
        previous = self.tokens.index_select(1, self.position).repeat_interleave(2, 0)
        x = self.norm(self.embed(previous) + self.embed_positions(self.position))
        for layer in self.layers:
            x = layer(x, self.position, limit, mask)
        conditional, unconditional = (
            self.head(self.final_norm(x))[:, 0].float().unflatten(0, (-1, 2)).unbind(1)
        )
        logits = unconditional + GUIDANCE * (conditional - unconditional)
        least = logits.topk(min(TOP_K, logits.shape[1])).values[:, -1:]
        weights = logits.masked_fill(logits < least, -torch.inf).softmax(-1)
        token = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
        self.position.add_(1)
        self.tokens.index_copy_(1, self.position, token)


@torch.no_grad()
def time_tokens(config: DalleBartConfig, slots: int, repeats: int) -> Iterator[Times]:
    """Yields the times of all tokens of a full batch: as it is, then with CUDA graphs if there is a GPU."""
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    with torch.device("cuda" if on_gpu else "cpu"):
        decoder = Decoder(config, slots)
    decoder = decoder.to(torch.bfloat16 if on_gpu else torch.float32).eval()
    length = config.image_length

    def draw(advance: Callable[[int], None]) -> None:
        decoder.begin()
        for position in range(length):
            advance(position)
        decoder.tokens.cpu()

    def plain(position: int) -> None:
        decoder(position + 1, masked=False)

    yield measure(lambda: draw(plain), repeats)
    if not on_gpu:
        return
    block = -(-length // BLOCKS)
    graphs = []
    for limit in range(block, length + 1, block):
        decoder.begin()
        decoder(limit, masked=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decoder(limit, masked=True)
        graphs.append(graph)
    yield measure(lambda: draw(lambda position: graphs[position // block].replay()), repeats)

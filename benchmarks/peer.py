"""What the package min-dalle takes for the same work, with random weights of the same shapes.

It runs in a process of its own, so that neither library's threads get in the other's way, and prints one line of JSON.
It is no dependency of Smalti; `INSTALL` is how to get it. Every step of it costs the same: it attends over all
positions at each, so that some of them stand for all.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VERSION = "0.4.11"
# Without its dependencies, so that it leaves the installed torch alone.
INSTALL = f"pip install --no-deps min-dalle=={VERSION} && pip install emoji requests"
MISSING = 3
"""The exit status where the package is not installed."""


@dataclass(frozen=True)
class PeerWork:
    """What is measured, and the sizes of the model."""

    d_model: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    text_length: int
    candidates: tuple[int, ...]
    steps: int
    """How many steps of the decoder are timed."""
    pictures: int
    """How many pictures the VQGAN decodes; its shape is always the published one. 0: none."""
    repeats: int
    device: str = "cpu"


@dataclass(frozen=True)
class PeerTimes:
    """What it took, in seconds."""

    steps: dict[int, list[float]]
    """By the number of candidates, one step of the decoder."""
    decodes: list[float]


def measure_peer(work: PeerWork) -> PeerTimes | None:
    """Measures min-dalle in a process of its own; returns None where it is not installed."""
    command = [sys.executable, "-m", "benchmarks.peer", json.dumps(asdict(work))]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=folder)
    if done.returncode == MISSING:
        return None
    done.check_returncode()
    times = json.loads(done.stdout.splitlines()[-1])
    return PeerTimes({int(count): each for count, each in times["steps"].items()}, times["decodes"])


def _measure(work: PeerWork) -> PeerTimes:
    import torch
    from min_dalle.models import DalleBartDecoder, VQGanDetokenizer

    torch.set_grad_enabled(False)
    dtype = torch.float32 if work.device == "cpu" else torch.bfloat16
    decoder = DalleBartDecoder(
        image_vocab_count=work.vocabulary,
        embed_count=work.d_model,
        attention_head_count=work.heads,
        glu_embed_count=work.ffn,
        layer_count=work.layers,
        device=work.device,
    )
    decoder = decoder.to(work.device, dtype).eval()
    steps = {count: _time_steps(torch, decoder, work, count, dtype) for count in work.candidates}
    decodes = []
    if work.pictures:
        detokenizer = VQGanDetokenizer().to(work.device).eval()
        tokens = torch.randint(0, 2**14, (work.pictures, 256), device=work.device)
        for _ in range(work.repeats + 1):  # The first is not counted.
            begin = time.perf_counter()
            detokenizer.forward(False, tokens).cpu()
            decodes.append(time.perf_counter() - begin)
    return PeerTimes(steps, decodes[1:])


def _time_steps(torch: Any, decoder: Any, work: PeerWork, count: int, dtype: Any) -> list[float]:
    """Draws the first tokens as `MinDalle.generate_raw_image_stream` does."""
    places = {"device": work.device}
    encoder_state = torch.randn(2 * count, work.text_length, work.d_model, dtype=dtype, **places)
    attention_mask = torch.ones(2 * count, 1, 1, work.text_length, dtype=torch.bool, **places)
    attention_state = torch.zeros(work.layers, 4 * count, 256, work.d_model, dtype=dtype, **places)
    tokens = torch.full((count, 257), work.vocabulary - 1, **places)
    indices = torch.arange(256, **places)
    settings = torch.tensor([1.0, min(256, work.vocabulary), 16.0], **places)
    seconds = []
    # The first two are not counted: memory is fetched, threads are started.
    for index in range(work.steps + 2):
        begin = time.perf_counter()
        tokens[:, index + 1], attention_state = decoder.sample_tokens(
            settings=settings,
            attention_mask=attention_mask,
            encoder_state=encoder_state,
            attention_state=attention_state,
            prev_tokens=tokens[:, [index]],
            token_index=indices[[index]],
        )
        tokens[0, index + 1].item()  # Waits for the device.
        seconds.append(time.perf_counter() - begin)
    return seconds[2:]


def main() -> None:
    """Measures what the argument says, and prints it."""
    try:
        import min_dalle  # noqa: F401
    except ImportError:
        sys.exit(MISSING)
    print(json.dumps(asdict(_measure(PeerWork(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()

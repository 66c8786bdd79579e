"""Timing the package min-dalle on the same work, with random weights of the same shapes.

It runs in a separate process, so that the threads of the two libraries do not interfere, and prints one line of JSON.
min-dalle is not a dependency of Smalti; `INSTALL` installs it. All its steps take the same time, since each attends
over all positions, so only some of them are timed.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VERSION = "0.4.11"
# Without its dependencies, so that the installed torch is kept.
INSTALL = f"pip install --no-deps min-dalle=={VERSION} && pip install emoji requests"
MISSING = 3
"""The exit code if the package is not installed."""


@dataclass(frozen=True)
class PeerWork:
    """The work to measure, and the sizes of the model."""

    d_model: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    text_length: int
    candidates: tuple[int, ...]
    steps: int
    """Number of timed steps of the decoder."""
    pictures: int
    """Number of pictures that the VQGAN decodes, or 0 for none; its shape is always the published one."""
    repeats: int
    device: str = "cpu"


@dataclass(frozen=True)
class PeerTimes:
    """The times of min-dalle, in seconds."""

    steps: dict[int, list[float]]
    """Times of single steps of the decoder, by the number of candidates."""
    decodes: list[float]


def measure_peer(work: PeerWork) -> PeerTimes | None:
    """Measures min-dalle in a separate process; returns None if it is not installed."""
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
    """Generates the first tokens as `MinDalle.generate_raw_image_stream` does; returns the seconds of each step."""
    options = {"device": work.device}
    encoder_state = torch.randn(2 * count, work.text_length, work.d_model, dtype=dtype, **options)
    attention_mask = torch.ones(2 * count, 1, 1, work.text_length, dtype=torch.bool, **options)
    attention_state = torch.zeros(work.layers, 4 * count, 256, work.d_model, dtype=dtype, **options)
    tokens = torch.full((count, 257), work.vocabulary - 1, **options)
    indices = torch.arange(256, **options)
    settings = torch.tensor([1.0, min(256, work.vocabulary), 16.0], **options)
    seconds = []
    # The first two do not count: they allocate memory and start threads.
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
        tokens[0, index + 1].item()  # Wait for the device.
        seconds.append(time.perf_counter() - begin)
    return seconds[2:]


def main() -> None:
    """Measures the work that the argument describes, and prints the times."""
    try:
        import min_dalle  # noqa: F401
    except ImportError:
        sys.exit(MISSING)
    print(json.dumps(asdict(_measure(PeerWork(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()

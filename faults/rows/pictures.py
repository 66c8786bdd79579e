"""Picture files that mean harm."""

import time
from concurrent.futures import ThreadPoolExecutor

from faults.layout import DECODER
from faults.matrix import Trial, row
from harness.hostile_pictures import png, scan_bomb
from smalti.errors import InvalidInputError

MAX_SECONDS = 30.0
"""Time in which a call of somebody else must be answered meanwhile, on a busy machine."""
SCANS = 6000
BOMBS = 16


@row(
    "18",
    "picture files that take minutes or gigabytes to decode",
    "they are refused; other calls are answered in time",
    settings={DECODER: "decoder"},
)
def bombs(trial: Trial) -> None:
    """Sends many such files at once, and submits jobs meanwhile."""
    account = trial.account
    files = {
        "scans": scan_bomb(SCANS),
        "pixels": png(50_000, 50_000, b""),
        "rows": png(4096, 4096, bytes(4097 * 4096)[: 2**20]),
    }
    with ThreadPoolExecutor(BOMBS) as threads:
        sent = [
            threads.submit(account.submit, f"row 18 {name} {number}", initial_image=content)
            for number in range(BOMBS // len(files) + 1)
            for name, content in files.items()
        ]
        began = time.monotonic()
        others = [account.submit(f"row 18 others {number}") for number in range(4)]
        seconds = time.monotonic() - began
        refused = [each.result() for each in sent]
    for each in refused:
        trial.expect(
            isinstance(each.refused, InvalidInputError), f"{each.prompt!r} was answered with {each.refused!r}"
        )
    trial.expect(seconds < MAX_SECONDS, f"other calls took {seconds:.0f} s")
    trial.notes.append(f"{len(refused)} files were refused; 4 other jobs were accepted in {seconds:.1f} s")
    trial.expect_states("succeeded", *others)

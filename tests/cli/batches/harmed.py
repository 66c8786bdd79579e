"""Runs inside `smalti up`: draws a batch while the generator is killed twice.

The first argument is the input, a prompt in each line. The others are the command that draws it; without them, OpenAI's
client does, and the SHA-256 of every picture is printed, a line for each prompt.
"""

import hashlib
import json
import sys
import threading
import time
from base64 import b64decode
from pathlib import Path

import openai
import psutil

from harness.waiting import wait_until
from smalti import Client

LIMIT = 600.0
BUSY_SECONDS = 8.0
"""Processor time that a generator uses before it is killed: more than it needs to load, and less than for the batch."""
KILLS = 2


def generator() -> psutil.Process | None:
    """Returns the process of the system's generator; None while there is none."""
    parent = psutil.Process().parent()
    assert parent is not None
    for process in parent.children(recursive=True):
        try:
            if "smalti.services.generator" in process.cmdline():
                return process
        except psutil.Error:
            continue
    return None


def kill_twice() -> None:
    """Kills the generator, and the next one too, each after it has worked on a shard for a while."""
    with Client() as client:
        for _ in range(KILLS):
            wait_until(lambda: any(each.progress.shards_in_flight for each in client.batches.list()), LIMIT)
            wait_until(lambda: generator() is not None, LIMIT)
            victim = generator()
            assert victim is not None
            kill_at_work(victim)


def kill_at_work(victim: psutil.Process) -> None:
    """Kills a process once it has used more of the processor."""
    idle = victim.cpu_times().user
    wait_until(lambda: victim.cpu_times().user > idle + BUSY_SECONDS, LIMIT)
    victim.kill()
    victim.wait(LIMIT)
    print(f"killed {victim.pid}", flush=True)


def draw(prompts: list[str]) -> None:
    """Draws prompts by OpenAI's client, and prints the SHA-256 of their pictures."""
    client = openai.OpenAI()
    lines = [
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/images/generations",
                "body": {"prompt": prompt, "n": 1, "candidates": 2},
            }
        )
        for number, prompt in enumerate(prompts)
    ]
    file = client.files.create(file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
    )
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    for line in client.files.content(batch.output_file_id).text.splitlines():
        body = json.loads(line)["response"]["body"]
        print("picture", hashlib.sha256(b64decode(body["data"][0]["b64_json"])).hexdigest())


def main() -> int:
    """Runs the draw and the kills; returns the exit status."""
    source, command = Path(sys.argv[1]), sys.argv[2:]
    killing = threading.Thread(target=kill_twice)
    killing.start()
    status = 0
    if command:
        status = psutil.Popen(command).wait()
    else:
        draw(source.read_text().splitlines())
    killing.join()
    return status


if __name__ == "__main__":
    sys.exit(main())

"""OpenAI's Batch API on the whole system: `smalti up` with the shipped model draws what single requests draw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.process]

SECONDS = 500.0

SCRIPT = r"""
import io, json, time
from base64 import b64decode, b64encode
import openai
from PIL import Image

client = openai.OpenAI()

def file_of(answer):
    return answer["data"][0]["b64_json"]

def run(endpoint, *bodies):
    lines = [json.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": body})
             for number, body in enumerate(bodies)]
    made = client.files.create(file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=made.id, endpoint=endpoint, completion_window="24h")
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
    read = lambda id: [json.loads(line) for line in client.files.content(id).text.splitlines()] if id else []
    return batch.status, read(batch.output_file_id), read(batch.error_file_id)

draw = {"prompt": "a blue cat", "candidates": 2, "n": 1, "seed": 7}
other = {**draw, "output_format": "webp"}
status, answers, errors = run("/v1/images/generations", draw, other, {**draw, "size": "1x1"})
alone = client.images.generate(prompt="a blue cat", extra_body={"candidates": 2, "n": 1, "seed": 7}).to_dict()
picture = b64decode(file_of(alone))
hole = Image.new("RGBA", Image.open(io.BytesIO(picture)).size, "black")
hole.paste((0, 0, 0, 0), (0, 0, hole.width // 2, hole.height // 2))
mask = io.BytesIO()
hole.save(mask, "PNG")
kept = client.files.create(file=("cat.png", picture), purpose="vision")
again = {"prompt": "a red cat", "candidates": 1, "seed": 9, "images": [{"file_id": kept.id}],
         "mask": {"image_url": "data:image/png;base64," + b64encode(mask.getvalue()).decode()}}
edits = run("/v1/images/edits", again)
edited = client.images.edit(image=("cat.png", picture), mask=("mask.png", mask.getvalue()), prompt="a red cat",
                            extra_body={"candidates": 1, "seed": 9}).to_dict()
large = client.files.create(file=("large.txt", bytes(20_000_000)), purpose="batch")
print("RESULT " + json.dumps({
    "status": status,
    "answers": [each["custom_id"] for each in answers],
    "errors": [[each["custom_id"], each["response"]["body"]["error"]["param"]] for each in errors],
    "same": file_of(answers[0]["response"]["body"]) == file_of(alone),
    "edits": edits[0],
    "same edit": file_of(edits[1][0]["response"]["body"]) == file_of(edited),
    "large": client.files.content(large.id).content == bytes(20_000_000),
}))
"""


def test_batch_draws_what_single_requests_draw(tmp_path: Path) -> None:
    script = tmp_path / "batch.py"
    script.write_text(SCRIPT)
    up = [sys.executable, "-m", "smalti", "up", "--data", str(tmp_path / "data"), "--ports", "free"]
    done = subprocess.run(
        [*up, "--", sys.executable, str(script)],
        env={**os.environ, "SMALTI_MESSAGES_WRITE": "3"},
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = next(each for each in done.stdout.splitlines() if each.startswith("RESULT "))
    assert json.loads(said.removeprefix("RESULT ")) == {
        "status": "completed",
        "answers": ["0", "1"],
        "errors": [["2", "size"]],
        "same": True,
        "edits": "completed",
        "same edit": True,
        "large": True,
    }

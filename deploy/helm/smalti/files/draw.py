"""Draws a picture through the front door, for `helm test`: the HTTP API, or the gateway if there is no web service."""

import base64
import json
import os
import pathlib
import subprocess
import sys
import urllib.request

PROMPT = "a blue cat on a yellow background"
seconds = float(os.environ["SECONDS"])
secrets = pathlib.Path(os.environ.get("SMALTI_SECRETS", "/none"), "SMALTI_KEY")
if url := os.environ.get("URL"):
    body = json.dumps({"prompt": PROMPT, "n": 1, "response_format": "b64_json"}).encode()
    headers = {"content-type": "application/json"}
    if secrets.exists():
        headers["authorization"] = f"Bearer {secrets.read_text().strip()}"
    request = urllib.request.Request(f"{url}/v1/images/generations", body, headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        picture = base64.b64decode(json.load(answer)["data"][0]["b64_json"])
else:
    command = ["smalti", "generate", PROMPT, "--n", "1", "--out", "/tmp/pictures"]
    subprocess.run(command, check=True, timeout=seconds)
    picture = next(pathlib.Path("/tmp/pictures").rglob("*.png")).read_bytes()
if picture[:8] != b"\x89PNG\r\n\x1a\n":
    sys.exit(f"the answer is no picture: {picture[:60]!r}")
print(f"a picture of {len(picture)} bytes was drawn")

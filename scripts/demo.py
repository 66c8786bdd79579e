"""Draws nine pictures through the HTTP API, and writes them and their grid to `pictures/`; `make demo` calls it.

Any client of OpenAI would do. This one needs the standard library only.
"""

import io
import json
import os
import sys
import urllib.request
from base64 import b64decode
from pathlib import Path

from PIL import Image

from smalti.pictures import grid, plain_png_bytes, save_png, slug

FOLDER = Path("pictures")
PROMPT = "a blue cat on a yellow background"
SECONDS = 600.0


def main() -> None:
    """Sends the request, and writes the files."""
    prompt = " ".join(sys.argv[1:]) or PROMPT
    request = urllib.request.Request(
        f"{os.environ['OPENAI_BASE_URL']}/images/generations",
        json.dumps({"prompt": prompt, "n": 9, "seed": 1}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answer = json.load(response)
    files = [b64decode(picture["b64_json"]) for picture in answer["data"]]
    stem = f"{slug(prompt)}-{answer['seed']}"
    for number, file in enumerate(files, 1):
        save_png(FOLDER, f"{stem}-{number}", file)
    sheet = grid([Image.open(io.BytesIO(file)) for file in files])
    print(save_png(FOLDER, f"{stem}-grid", plain_png_bytes(sheet)))


if __name__ == "__main__":
    main()

"""Edits and variations, by OpenAI's own client and by forms that it would not send."""

import contextlib
import io
import socket
import struct
import zlib
from base64 import b64decode
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from harness.gateway_calls import mask_file
from harness.web import SIDE, SIZE, TOKENS, WebHarness, picture_file
from smalti.parameters import FREE, SamplingParameters
from smalti.pictures import Drawing, plain_png_bytes, png_bytes
from tests.services.web.conftest import MakeWeb

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
TILE = SIZE // SIDE
MASK = mask_file(SIZE, (TILE, 0, 2 * TILE, TILE))
"""A mask of tile 1."""
CAT = {"prompt": "a cat"}


def photo(grey: int = 9, size: int = SIZE) -> bytes:
    """Returns the file of a grey picture; the tokens of its tiles are its brightness."""
    return plain_png_bytes(Image.new("L", (size, size), grey))


def given(web: WebHarness) -> list[int]:
    """Returns the given tokens of the newest job."""
    return web.jobs[0].job.given


def test_edit_keeps_what_the_mask_does_not_cover(client: openai.OpenAI, web: WebHarness) -> None:
    answer = client.images.edit(
        image=("photo.png", photo()), mask=MASK, prompt="a cat", n=2, output_format="png",
        input_fidelity="low", extra_body={"seed": 7, "candidates": 4, "temperature": 0.5, "vary": False},
    )  # fmt: skip
    assert [b64decode(each.b64_json or "") for each in answer.data or ()] == [
        picture_file(7, 3),
        picture_file(7, 2),
    ]
    assert given(web) == [FREE if tile == 1 else 9 for tile in range(TOKENS)]
    job = web.jobs[0].job
    assert (job.parameters["prompt"], job.parameters["sampling"]["temperature"]) == ("a cat", 0.5)
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == TOKENS
    assert answer.usage.output_tokens == 4 * TOKENS


def test_edit_without_a_mask_draws_the_transparent_part(client: openai.OpenAI, web: WebHarness) -> None:
    client.images.edit(image=[io.BytesIO(MASK)], prompt="a cat")
    # The decoder sees white or black; what matters is which tile is free.
    assert [tile for tile, token in enumerate(given(web)) if token == FREE] == [1]
    with pytest.raises(openai.BadRequestError, match="mask: has no fully transparent pixel") as refused:
        client.images.edit(image=photo(), prompt="a cat")
    assert refused.value.param == "mask"


def test_lines_of_a_stream_end_with_lf(http: httpx2.Client) -> None:
    files = {"image": photo(), "mask": MASK}
    streamed = http.post(EDITS, data={**CAT, "stream": "true"}, files=files).content
    assert streamed.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in streamed


def test_edit_streams(client: openai.OpenAI, web: WebHarness) -> None:
    web.paused.set()
    stream = client.images.edit(
        image=photo(), mask=MASK, prompt="a cat", stream=True, partial_images=1, extra_body={"candidates": 4}
    )
    tasks = web.draw_rows(SIDE // 2)
    types = []
    for event in stream:
        types.append(event.type)
        if event.type == "image_edit.partial_image":
            web.finish(tasks)
    assert types == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.filterwarnings(
    "ignore:deprecated:DeprecationWarning"
)  # OpenAI itself has no variations any more.
def test_variation_keeps_a_share(client: openai.OpenAI, web: WebHarness) -> None:
    answer = client.images.create_variation(image=photo(), n=2, response_format="b64_json", size=None)
    assert len(answer.data or ()) == 2
    job = web.jobs[0].job
    assert (job.given, job.parameters["strength"], job.parameters["prompt"]) == (
        [9] * TOKENS,
        0.5,
        "a picture",
    )
    drawing = Drawing(
        prompt="a red fox",
        seed=1,
        model="pictograms",
        revision="",
        sampling=SamplingParameters(),
        candidates=1,
    )
    ours = png_bytes(Image.new("RGB", (SIZE, SIZE)), drawing)
    client.images.create_variation(image=ours, extra_body={"strength": 0.1})
    job = web.jobs[0].job
    assert (job.parameters["strength"], job.parameters["prompt"]) == (0.1, "a red fox")


def test_equal_forms_with_a_key_make_one_job(http: httpx2.Client, web: WebHarness) -> None:
    key = {"idempotency-key": "edit 1"}
    for status, mask in ((200, MASK), (200, MASK), (409, mask_file(SIZE))):
        files = {"image": photo(), "mask": mask}
        assert http.post(EDITS, data=CAT, files=files, headers=key).status_code == status
    assert len(web.jobs) == 1


def file(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), 9).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """Returns a small PNG file of a large black picture."""
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


ZIP = b"PK\5\6" + bytes(18)
"""An empty archive, which may follow anything."""


REFUSED: tuple[tuple[str, dict[str, Any], int, str | None], ...] = (
    (EDITS, {"json": CAT}, 400, "body"),
    (EDITS, {"data": CAT}, 400, "body"),  # Not a multipart form.
    (EDITS, {"data": CAT, "files": {"mask": MASK}}, 400, "image"),
    (EDITS, {"files": {"image": photo(), "mask": MASK}}, 400, "prompt"),
    (EDITS, {"data": {**CAT, "steps": "3"}, "files": {"image": photo(), "mask": MASK}}, 400, "steps"),
    (EDITS, {"data": {**CAT, "n": "many"}, "files": {"image": photo(), "mask": MASK}}, 400, "n"),
    (EDITS, {"data": {**CAT, "n": "0"}, "files": {"image": photo(), "mask": MASK}}, 400, "n"),
    (EDITS, {"data": {**CAT, "size": "1x1"}, "files": {"image": photo(), "mask": MASK}}, 400, "size"),
    (EDITS, {"data": {**CAT, "image": "cat.png"}, "files": {"mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": [("image[]", photo()), ("image[]", photo())]}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": photo(), "markup": MASK}}, 400, "markup"),
    (EDITS, {"data": CAT, "files": {"image": file("GIF"), "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": b"text", "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": photo()[:50], "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": photo(), "mask": mask_file(SIZE + 1)}}, 400, "mask"),
    (EDITS, {"data": CAT, "files": {"image": photo(), "mask": b""}}, 400, "mask"),
    (EDITS, {"data": CAT, "files": {"image": photo(0, 4097), "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": bomb(10_000), "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": bomb(20_000), "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": photo(), "mask": bomb(10_000)}}, 400, "mask"),
    # Files of two kinds at once.
    (EDITS, {"data": CAT, "files": {"image": photo() + ZIP, "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": photo(), "mask": MASK + ZIP}}, 400, "mask"),
    (EDITS, {"data": CAT, "files": {"image": file("WEBP") + b"<script>", "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": file("GIF") + photo(), "mask": MASK}}, 400, "image"),
    (EDITS, {"data": CAT, "files": {"image": b"%PDF-1.7\n" + photo(), "mask": MASK}}, 400, "image"),
    (VARIATIONS, {"files": {"image": photo() + ZIP}}, 400, "image"),
    (VARIATIONS, {"files": {"image": bomb(10_000)}}, 400, "image"),
    (VARIATIONS, {"files": {"image": file("GIF")}}, 400, "image"),
    (VARIATIONS, {"files": {"image": photo()}, "data": {"strength": "1"}}, 400, "strength"),
    (VARIATIONS, {"files": {"image": photo()}, "data": {"stream": "true"}}, 400, "stream"),
    (VARIATIONS, {"files": {"image": photo(), "mask": MASK}}, 400, "mask"),
)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("path", "form", "status", "field"), REFUSED)
def test_wrong_forms_are_refused_and_nothing_is_stored(
    http: httpx2.Client, web: WebHarness, path: str, form: dict[str, Any], status: int, field: str | None
) -> None:
    before = [info.key for info in web.gateway.store.objects()]
    response = http.post(path, **form)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, field), error
    assert "\n" not in error["message"]
    assert len(error["message"]) < 200
    assert web.jobs == []
    assert [info.key for info in web.gateway.store.objects()] == before


def test_what_follows_a_jpeg_is_ignored_and_not_stored(http: httpx2.Client, web: WebHarness) -> None:
    before = {info.key for info in web.gateway.store.objects()}
    marker = b"<script>not a picture</script>"
    files = {"image": file("JPEG") + marker, "mask": MASK}
    assert http.post(EDITS, data=CAT, files=files).status_code == 200
    stored = [info.key for info in web.gateway.store.objects() if info.key not in before]
    assert stored
    assert not [key for key in stored if marker in web.gateway.store.get(key)]


def test_upload_that_trickles_is_cut_off(make_web: MakeWeb) -> None:
    web = make_web(body_timeout=0.3)
    head = f"POST {EDITS} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    part = '--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", int(web.url.rpartition(":")[2])), 20) as connection:
        connection.sendall(f"{head}content-length: 100000\r\n\r\n{part}".encode())
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            connection.sendall(b"x")  # Never silent for long.
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert web.jobs == []


def test_pictures_have_a_limit_of_their_own(make_web: MakeWeb) -> None:
    web = make_web(body_bytes=1024, upload_bytes=4096)
    with web.client() as http:
        files = {"image": file("JPEG") + bytes(2000), "mask": MASK}
        assert http.post(EDITS, data=CAT, files=files).status_code == 200
        files["mask"] = MASK + bytes(4000)
        large = http.post(EDITS, data=CAT, files=files)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        assert http.post("/v1/images/generations", json={"prompt": "x" * 2000}).status_code == 413

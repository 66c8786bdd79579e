"""All paths of real clients: OpenAI's for Python and for Node.js, and curl."""

import json
import shutil
import subprocess
import threading
import urllib.request
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import openai
import pytest

from harness.gateway_calls import mask_file
from harness.web import SIZE, TOKENS, WebHarness, picture_file
from tests.services.web.conftest import MakeWeb
from tests.services.web.test_http_page import ADDRESS, examples

pytestmark = pytest.mark.slow

SECONDS = 300.0

SCRIPT = """
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const made = await client.images.generate({ prompt: "a cat", n: 2, seed: 7, candidates: 4 });
const linked = await client.images.generate({ prompt: "a cat", response_format: "url", candidates: 1 });
const file = await (await fetch(linked.data[0].url)).arrayBuffer();
const types = [];
for await (const event of await client.images.generate({ prompt: "a cat", stream: true, candidates: 1 })) {
  types.push(event.type);
}
const [picture, mask] = await Promise.all(
  process.argv.slice(3).map((content) => toFile(Buffer.from(content, "base64"), "file.png", { type: "image/png" })));
const edited = await client.images.edit({ image: picture, mask, prompt: "a cat", n: 2, seed: 7, candidates: 4 });
const varied = await client.images.createVariation({ image: picture, n: 2, seed: 7, candidates: 4 });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const error = await client.images.generate({ prompt: "" }).catch((caught) => caught);
console.log(JSON.stringify({
  files: [made, edited, varied].map((answer) => answer.data.map((each) => each.b64_json)),
  usage: made.usage.output_tokens, bytes: file.byteLength, types, models,
  error: [error.constructor.name, error.status, error.param, error.code],
}));
"""


BATCH_SCRIPT = """
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const [url, purpose] = ["/v1/images/generations", "batch"];
const line = (id, body) => JSON.stringify({ custom_id: id, method: "POST", url, body }) + "\\n";
const content = Buffer.from(line("a", { prompt: "a cat", n: 2 }) + line("b", { prompt: "" }));
const file = await client.files.create({ file: await toFile(content, "requests.jsonl"), purpose });
const upload = await client.uploads.create(
  { bytes: content.length, filename: "parts.jsonl", mime_type: "application/jsonl", purpose });
const parts = [];
for (const part of [content.subarray(0, 10), content.subarray(10)]) {
  parts.push(await client.uploads.parts.create(upload.id, { data: await toFile(part, "part") }));
}
const completed = await client.uploads.complete(upload.id, { part_ids: parts.map((part) => part.id) });
const joined = await (await client.files.content(completed.file.id)).text();
const ended = async (batch) => {
  while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
};
const create = (id) => client.batches.create(
  { input_file_id: id, endpoint: url, completion_window: "24h", metadata: { run: "7" } });
const done = await ended(await create(completed.file.id));
const broken = await client.files.create({ file: await toFile(Buffer.from("no JSON\\n"), "broken.jsonl"), purpose });
const failed = await ended(await create(broken.id));
const lines = async (id) => (await (await client.files.content(id)).text()).trim().split("\\n").map(JSON.parse);
const listed = [];
for await (const batch of client.batches.list({ limit: 1 })) listed.push(batch.id);
const files = [];
for await (const each of client.files.list({ purpose, limit: 1, order: "asc" })) files.push(each.id);
const deleted = await client.files.delete(file.id);
const gone = await client.files.retrieve(file.id).catch((caught) => caught);
console.log(JSON.stringify({
  same: joined === content.toString(), status: done.status, counts: done.request_counts, metadata: done.metadata,
  answers: (await lines(done.output_file_id)).map((each) => [each.custom_id, each.response.body.data.length]),
  errors: (await lines(done.error_file_id)).map((each) => [each.custom_id, each.response.status_code]),
  failed: [failed.status, failed.errors.data[0].line], listed: listed.length, files: files.length,
  deleted: deleted.deleted, gone: [gone.constructor.name, gone.code],
}));
"""


@pytest.fixture(scope="module")
def with_batches() -> bool:
    return True


def test_python_up_to_ten_pictures_in_both_forms_and_all_formats(client: openai.OpenAI) -> None:
    for n in (1, 10):
        answer = client.images.generate(prompt="a cat", n=n, quality="low", extra_body={"seed": 7})
        expected = [picture_file(7, index) for index in range(n)][::-1]
        assert [b64decode(each.b64_json or "") for each in answer.data or ()] == expected
        answer = client.images.generate(
            prompt="a cat", n=n, quality="low", response_format="url", extra_body={"seed": 7}
        )
        for picture, content in zip(answer.data or (), expected, strict=True):
            with urllib.request.urlopen(picture.url or "") as response:
                assert response.read() == content
    for output_format in ("jpeg", "webp"):
        answer = client.images.generate(prompt="a cat", output_format=output_format, quality="low")
        assert answer.output_format == output_format


def test_python_error_classes(make_web: MakeWeb) -> None:
    web = make_web(gateway={"open_jobs": 1}, wait=1.0, retry=0.1)
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=0) as client:
        images = client.images
        with pytest.raises(openai.BadRequestError):
            images.generate(prompt="a cat", size="1x1")
        with pytest.raises(openai.NotFoundError) as missing:
            images.generate(prompt="a cat", model="gpt-image-2")
        assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-image-2")
        key = {"idempotency-key": "one"}
        images.generate(prompt="a cat", extra_headers=key)
        with pytest.raises(openai.ConflictError):
            images.generate(prompt="a dog", extra_headers=key)
        with pytest.raises(openai.APIStatusError) as large:
            images.generate(prompt="x" * 2**21)
        assert large.value.status_code == 413
        web.paused.set()
        with pytest.raises(openai.InternalServerError) as late:
            web_sweeps(web, lambda: images.generate(prompt="a cat"))
        assert (late.value.status_code, late.value.code) == (504, "expired")
        web.gateway.jobs.create(a_job())
        with pytest.raises(openai.RateLimitError) as full:
            images.generate(prompt="a cat")
        assert full.value.type == "rate_limit_error"
        web.stop_gateway()
        with pytest.raises(openai.InternalServerError) as away:
            images.generate(prompt="a cat")
        web.start_gateway()
        assert away.value.status_code == 503
        web.stop()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def a_job() -> Any:
    from harness.gateway import job_spec

    return job_spec()


def web_sweeps(web: WebHarness, call: Any) -> None:
    """Makes a call while jobs whose time is over expire."""
    ending = threading.Event()

    def sweep() -> None:
        while not ending.wait(0.1):
            web.gateway.gateway.sweep()

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        call()
    finally:
        ending.set()
        thread.join()


def test_python_retry_waits_for_a_gateway_that_is_away(make_web: MakeWeb) -> None:
    web = make_web(retry=0.1)
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=5) as client:
        assert len(client.models.list().data) == 1
        web.stop_gateway()
        timer = threading.Timer(1.0, web.start_gateway)
        timer.start()
        assert client.images.generate(prompt="a cat").data
        timer.join()
    assert web.states() == ["succeeded"]


def test_python_retry_after_a_lost_connection_makes_no_second_job(make_web: MakeWeb) -> None:
    web = make_web(abandon=10.0)
    web.paused.set()
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=2, timeout=3.0) as client:
        timer = threading.Timer(4.0, web.paused.clear)
        timer.start()
        answer = client.images.generate(prompt="a cat")
        timer.join()
    assert [job.job.id for job in web.jobs] == [answer.to_dict()["id"]]


def test_node(web: WebHarness, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    assert npm is not None
    (tmp_path / "package.json").write_text('{"type": "module"}')
    subprocess.run(
        [npm, "install", "--no-fund", "--no-audit", "openai"], cwd=tmp_path, check=True, timeout=SECONDS
    )

    def node(script: str, *arguments: str) -> str:
        (tmp_path / "draw.js").write_text(script)
        command = ["node", "draw.js", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, check=True, timeout=SECONDS, capture_output=True, text=True
        )
        return done.stdout

    files = (b64encode(content).decode() for content in (picture_file(1, 1), mask_file(SIZE)))
    said = json.loads(node(SCRIPT, f"{web.url}/v1", *files))
    for files in said["files"]:
        assert [b64decode(file) for file in files] == [picture_file(7, 3), picture_file(7, 2)]
    assert said["usage"] == 4 * TOKENS
    assert said["bytes"] > 0
    assert said["types"] == ["image_generation.completed"]
    assert said["models"] == ["pictograms"]
    assert said["error"] == ["BadRequestError", 400, "prompt", "invalid_value"]
    assert json.loads(node(BATCH_SCRIPT, f"{web.url}/v1")) == {
        "same": True,
        "status": "completed",
        "counts": {"total": 2, "completed": 1, "failed": 1},
        "metadata": {"run": "7"},
        "answers": [["a", 2]],
        "errors": [["b", 400]],
        "failed": ["failed", 1],
        "listed": 2,
        "files": 3,
        "deleted": True,
        "gone": ["NotFoundError", "file_not_found"],
    }
    before = len(web.jobs)
    for example in examples("js"):
        node(example.replace(ADDRESS, web.url))
    assert len(web.jobs) == before + 1


def test_curl(web: WebHarness, tmp_path: Path) -> None:
    def curl(*arguments: str) -> str:
        command = ["curl", "--silent", "--show-error", "--max-time", "60", *arguments]
        return subprocess.run(command, check=True, timeout=SECONDS, capture_output=True, text=True).stdout

    body = (
        "-H",
        "content-type: application/json",
        "-d",
        '{"prompt": "a cat", "n": 1, "response_format": "url"}',
    )
    answer = json.loads(curl(f"{web.url}/v1/images/generations", *body))
    curl(answer["data"][0]["url"], "--fail", "-o", str(tmp_path / "cat.png"))
    (tmp_path / "hole.png").write_bytes(mask_file(SIZE))
    form = (
        "-F",
        f"image=@{tmp_path / 'cat.png'}",
        "-F",
        f"mask=@{tmp_path / 'hole.png'}",
        "-F",
        "prompt=a cat",
    )
    assert len(json.loads(curl(f"{web.url}/v1/images/edits", *form))["data"]) == 1
    assert len(json.loads(curl(f"{web.url}/v1/images/variations", *form[:2]))["data"]) == 1
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
    job = json.loads(
        curl(f"{web.url}/api/jobs", "-H", "content-type: application/json", "-d", '{"prompt": "a cat"}')
    )
    events = curl("-N", f"{web.url}/api/jobs/{job['id']}/events")
    assert events.count("event: job") >= 1
    assert '"state":"succeeded"' in events

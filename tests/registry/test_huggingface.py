"""Pulling models from a local server that implements the part of the hub's protocol that downloads need."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flax import serialization

from smalti.errors import InvalidInputError, ModelError
from smalti.models.bart import DalleBart
from smalti.models.vqgan import VQGAN
from smalti.registry.folder import ModelFolder
from smalti.registry.huggingface import pull_model
from smalti.registry.manifest import MANIFEST_FILE
from smalti.registry.verify import find_problems

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"
GATED = "somebody/gated"

# Answers for the errors of the hub: status and error code.
ERRORS = {
    "repository": (404, "RepoNotFound"),
    "revision": (404, "RevisionNotFound"),
    "gated": (403, "GatedRepo"),
}


class LocalHub(ThreadingHTTPServer):
    """A hub with repositories of files, all at one commit; `asked` are the requested paths."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(\w+)(\?.*)?", self.path)
        if found:
            return self.answer_about(found[1], found[2], found[3])
        repository, _, file = self.path[1:].partition(f"/resolve/{COMMIT}/")
        content = self.server.repositories[repository][file]
        return self.answer(content, ETag=f'"{sha1(content).hexdigest()}"')

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer_about(self, repository: str, question: str, revision: str) -> None:
        if repository == GATED:
            return self.refuse("gated")
        if repository not in self.server.repositories:
            return self.refuse("repository")
        if revision not in ("main", COMMIT):
            return self.refuse("revision")
        if question == "revision":
            return self.answer(json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode())
        files = self.server.repositories[repository].items()
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
            for name, content in files
        ]
        return self.answer(json.dumps(entries).encode())

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, reason: str) -> None:
        status, code = ERRORS[reason]
        self.answer(b"", status, **{"X-Error-Code": code})

    def log_message(self, *arguments: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def repositories(tiny: ModelFolder) -> dict[str, dict[str, bytes]]:
    """A hub with the tiny model, as a Smalti model and in the original format."""
    whole = {
        path.relative_to(tiny.path).as_posix(): path.read_bytes()
        for path in tiny.path.rglob("*")
        if path.is_file()
    }
    text = {name: whole[f"bart/{name}"] for name in ("tokenizer.json", "vocab.json", "merges.txt")}
    transformer, codebook = DalleBart.load(tiny.bart_folder), VQGAN.load(tiny.vqgan_folder)
    return {
        "somebody/mosaic": whole | {"README.md": CARD, "training.log": b"not listed"},
        "dalle-mini/dalle-mini": {
            **text,
            "README.md": CARD,
            "config.json": whole["bart/config.json"],
            "flax_model.msgpack": serialization.to_bytes(transformer.params),
            "optimizer.msgpack": b"large",
        },
        "dalle-mini/vqgan_imagenet_f16_16384": {
            "config.json": whole["vqgan/config.json"],
            "flax_model.msgpack": serialization.to_bytes(codebook.params),
        },
        "somebody/nothing": {"notes.txt": b""},
    }


@pytest.fixture
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[LocalHub]:
    server = LocalHub({name: dict(files) for name, files in repositories.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def user(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user with an empty cache and no models."""
    monkeypatch.setenv("SMALTI_HUB_ENDPOINT", hub.address)
    monkeypatch.setenv("SMALTI_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALTI_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("SMALTI_OFFLINE", raising=False)
    return tmp_path


def test_smalti_model_is_copied_unchanged(hub: LocalHub, user: Path, tiny: ModelFolder) -> None:
    pulled = pull_model("somebody/mosaic")
    assert pulled.path == user / "models" / tiny.name
    assert pulled.manifest == tiny.manifest
    assert find_problems(pulled) == []
    assert not (pulled.path / "training.log").exists()
    assert not any("training.log" in path for path in hub.asked)
    # The model shares its files with the cache, but keeps them when the cache is deleted.
    shutil.rmtree(user / "cache")
    assert find_problems(pulled) == []


def test_original_is_imported(hub: LocalHub, user: Path, tiny: ModelFolder) -> None:
    pulled = pull_model("dalle-mini/dalle-mini", clip=tiny.path / "clip")
    assert pulled.path == user / "models" / "dalle-mini"
    assert pulled.manifest.licence == "apache-2.0"
    assert pulled.manifest.source == "https://huggingface.co/dalle-mini/dalle-mini"
    assert find_problems(pulled) == []
    assert not any("optimizer" in path for path in hub.asked)


def test_second_pull_needs_no_network(hub: LocalHub, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for repository in ("somebody/mosaic", "dalle-mini/dalle-mini"):
        first = pull_model(repository, out=user / "first" / repository)
        hub.asked.clear()
        assert (
            pull_model(repository, out=user / "second" / repository, offline=True).revision == first.revision
        )
        monkeypatch.setenv("SMALTI_OFFLINE", "1")
        assert pull_model(repository, out=user / "third" / repository).revision == first.revision
        monkeypatch.delenv("SMALTI_OFFLINE")
        assert not hub.asked


def test_name_revision_licence_and_folder_can_be_given(user: Path) -> None:
    pulled = pull_model("somebody/mosaic", name="tiles", revision=COMMIT)
    assert (pulled.path, pulled.name) == (user / "models" / "tiles", "tiles")
    assert find_problems(pulled) == []
    pulled = pull_model("dalle-mini/dalle-mini", name="small", licence="CC0-1.0", out=user / "there")
    assert (pulled.path, pulled.name, pulled.manifest.licence) == (user / "there", "small", "CC0-1.0")


def refusal(user: Path, repository: str, **options: object) -> str:
    with pytest.raises((ModelError, InvalidInputError)) as caught:
        pull_model(repository, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (user / "models").exists() or not list((user / "models").iterdir())
    return str(caught.value)


def test_unavailable_repositories_are_refused(user: Path) -> None:
    assert "somebody/none: not found on the hub; if it is private, run" in refusal(user, "somebody/none")
    assert "access is restricted; request it on the hub" in refusal(user, GATED)
    assert "there is no revision v9" in refusal(user, "somebody/mosaic", revision="v9")
    assert "'a/b/c' must have the form owner/name" in refusal(user, "a/b/c")


def test_offline_pull_needs_the_cache(user: Path) -> None:
    message = refusal(user, "somebody/mosaic", offline=True)
    assert message == "somebody/mosaic: not in the cache; pull it once without offline mode"


def test_unreachable_hub_is_reported(hub: LocalHub, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No server listens on port 1.
    monkeypatch.setenv("SMALTI_HUB_ENDPOINT", "http://127.0.0.1:1")
    message = refusal(user, "somebody/mosaic")
    assert message == (
        "somebody/mosaic: not in the cache; the hub cannot be reached either: check the network"
    )


def test_repositories_without_a_model_are_refused(hub: LocalHub, user: Path) -> None:
    for card in (None, b"---\nlicense: [\n---\n", b"# No licence\n", b"\xff"):
        if card is not None:
            hub.repositories["somebody/nothing"]["README.md"] = card
            shutil.rmtree(user / "cache")
        assert "licence: the model card of somebody/nothing states none" in refusal(user, "somebody/nothing")
    message = "cannot be pulled: it has neither model.json nor flax_model.msgpack"
    assert f"somebody/nothing: {message}" in refusal(user, "somebody/nothing", licence="MIT")
    assert f"somebody/nothing: {message}" in refusal(user, "dalle-mini/dalle-mini", vqgan="somebody/nothing")
    files = hub.repositories["somebody/mosaic"]
    files["bart/merges.txt"] += b"x"
    assert "merges.txt: changed" in refusal(user, "somebody/mosaic")


def test_missing_listed_file_is_refused(hub: LocalHub, user: Path) -> None:
    del hub.repositories["somebody/mosaic"]["bart/merges.txt"]
    assert "bart/merges.txt is missing, although model.json lists it" in refusal(user, "somebody/mosaic")
    hub.repositories["somebody/mosaic"][MANIFEST_FILE] = b'{"format": 9}'
    shutil.rmtree(user / "cache")
    assert "format 9 is unknown" in refusal(user, "somebody/mosaic")

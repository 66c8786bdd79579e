"""The files of the page: how they are served, and what they may contain."""

import gzip
import re

import httpx2

from smalti.services.web.page import FOLDER

MAX_BYTES = 60_000
"""Of all files together, as they are sent; pictures come on top."""
TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
NAMESPACE = "http://www.w3.org/2000/svg"


def paths_of(http: httpx2.Client) -> dict[str, str]:
    """Returns the paths of all files that the document names, directly or over other modules, by their names."""
    found: dict[str, str] = {}
    waiting = re.findall(r'"(page/[^"]+)"', http.get("/").text)
    while waiting:
        path = waiting.pop()
        folder, _, name = path.rpartition("/")
        if name not in found:
            found[name] = path
            waiting += [f"{folder}/{other}" for other in re.findall(r'from "\./(\S+)"', http.get(path).text)]
    return found


def test_every_file_is_named_and_served_and_kept_by_browsers(http: httpx2.Client) -> None:
    paths = paths_of(http)
    assert {*paths, "index.html"} == {path.name for path in FOLDER.iterdir()}
    for name, path in paths.items():
        answer = http.get(path)
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers.get("content-encoding") == ("gzip" if len(answer.content) >= 1024 else None)
        assert http.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    start = http.get("/")
    assert start.headers["content-type"] == "text/html; charset=utf-8"
    assert start.headers["cache-control"] == "no-cache"
    assert http.get("/", headers={"if-none-match": start.headers["etag"]}).status_code == 304
    assert http.head("/").headers["etag"] == start.headers["etag"]


def test_other_paths_and_methods_are_errors(http: httpx2.Client) -> None:
    path = paths_of(http)["app.js"]
    for missing in (
        "/app.js",
        "/page/app.js",
        "/page/../app.js",
        path.replace("page/", "page/0"),
        "/favicon.ico",
    ):
        assert http.get(missing).status_code == 404
    assert http.post("/").status_code == 405


def test_policy_allows_nothing_from_elsewhere_and_nothing_inline(http: httpx2.Client) -> None:
    for path in ("/", *paths_of(http).values()):
        answer = http.get(path)
        policy = dict(
            each.strip().split(" ", 1) for each in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert {word for each in policy.values() for word in each.split()} <= {
            "'self'",
            "'none'",
            "data:",
            "blob:",
        }
        assert "set-cookie" not in answer.headers


def test_files_name_no_other_host_and_have_nothing_inline() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
        assert not re.search(r"""[a-z]+://|["'(]//""", text), path.name
        assert "document.cookie" not in text
    document = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", document)


def test_page_is_light() -> None:
    assert sum(len(gzip.compress(path.read_bytes(), 5)) for path in FOLDER.iterdir()) < MAX_BYTES

"""URLs of pictures in the object store, which `SMALTI_WEB_STORE_URLS` puts in place of our own."""

from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from harness.servers import HOST, S3Server
from harness.web import WebHarness, picture_file
from smalti.storage import ObjectStore, StoreSettings, open_store
from tests.services.web.conftest import MakeWeb


@pytest.fixture
def store(s3: S3Server) -> ObjectStore:
    return open_store(StoreSettings(url=SecretStr(s3.url)))


def url_of(web: WebHarness, **fields: Any) -> str:
    """Draws a picture; returns its URL."""
    body = {"prompt": "a cat", "n": 1, "candidates": 1, "seed": 3, "response_format": "url", **fields}
    with web.client() as http:
        response = http.post("/v1/images/generations", json=body)
    assert response.status_code == 200, response.text
    url: str = response.json()["data"][0]["url"]
    return url


def test_store_answers_by_itself_until_the_url_expires(
    make_web: MakeWeb, s3: S3Server, store: ObjectStore
) -> None:
    web = make_web(store=store, store_urls=True, url_lifetime=3600.0, gateway={"url_lifetime": 3.0})
    url = url_of(web)
    assert url.startswith(f"http://{HOST}:{s3.port}/")
    file = httpx2.get(url)
    assert (file.content, file.headers["content-type"]) == (picture_file(3, 0), "image/png")
    forged = url.replace("X-Amz-Expires=3&", "X-Amz-Expires=3000&")
    assert forged != url
    assert httpx2.get(forged).status_code == 403
    web.wait(lambda: httpx2.get(url).status_code == 403)


def test_url_is_ours_where_the_store_has_none(make_web: MakeWeb, store: ObjectStore) -> None:
    web = make_web(store=store, store_urls=True)
    converted = url_of(web, output_format="webp")
    assert converted.startswith(f"{web.url}/v1/images/")
    assert httpx2.get(converted).headers["content-type"] == "image/webp"
    for other in (make_web(store=store), make_web(store_urls=True)):
        ours = url_of(other)
        assert ours.startswith(f"{other.url}/v1/images/")
        assert httpx2.get(ours).content == picture_file(3, 0)

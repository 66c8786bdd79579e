"""Addresses such as s3://bucket/run-7/: where their store is, and which keys it takes."""

import pytest

from smalti.errors import InvalidInputError
from smalti.storage import open_address
from smalti.storage.s3 import S3Store

VARIABLES = (
    "SMALTI_STORE_URL", "SMALTI_STORE_ACCESS_KEY", "SMALTI_STORE_SECRET_KEY", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def url_of(address: str) -> str:
    store, key = open_address(address, "out")
    assert isinstance(store, S3Store)
    return store.presigned_url(f"{key}/file" if key else "file", seconds=60)


def test_store_of_the_settings_is_used_with_another_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_STORE_URL", "s3+https://id:secret@store.example:9000/smalti")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")
    assert url_of("s3://pictures/run-7/").startswith("https://store.example:9000/pictures/run-7/file?")
    assert url_of("s3://pictures").startswith("https://store.example:9000/pictures/file?")


def test_keys_and_region_of_aws_are_used_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "us-east-1" in url_of("s3://pictures/run-7")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "for-an-hour")
    url = url_of("s3://pictures/run-7")
    assert ".eu-west-1.amazonaws.com/" in url
    assert "for-an-hour" in url
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio.example:9000")
    url = url_of("s3://pictures/run-7")
    assert url.startswith("https://minio.example:9000/pictures/run-7/file?")
    assert "eu-west-1" in url


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("s3://", "out: 's3://' must have the form s3://BUCKET/PREFIX"),
        ("s3://UPPER/run", "must have the form"),
        ("s3://pictures/../run", "must be names of letters"),
        ("s3://pictures/run", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or SMALTI_STORE_URL"),
    ],
)
def test_address_that_cannot_be_used_is_refused(address: str, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        open_address(address, "out")

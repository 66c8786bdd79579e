"""Signatures of webhooks, as the Standard Webhooks specification says."""

from base64 import b64decode

import pytest

from smalti.client import verify_webhook
from smalti.errors import InvalidInputError
from smalti.webhooks import new_secret, signed_headers

NOW = 1_614_265_330
BODY = b'{"test": 2432232314}'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_signature_is_that_of_the_specification() -> None:
    """The example of the specification's own libraries."""
    headers = signed_headers([SECRET], notice_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=NOW, body=BODY)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_have_256_bits_and_differ() -> None:
    made = {new_secret() for _ in range(10)}
    assert len(made) == 10
    assert all(len(b64decode(each.removeprefix("whsec_"))) == 32 for each in made)


def test_either_of_two_secrets_verifies() -> None:
    old, new = new_secret(), new_secret()
    headers = signed_headers([new, old], notice_id="x", timestamp=NOW, body=BODY)
    capitals = {name.title(): value for name, value in headers.items()}
    for secret in (old, new, [new_secret(), old]):
        assert verify_webhook(secret, capitals, BODY, now=NOW + 299) == "x"


@pytest.mark.parametrize(
    ("changes", "body", "now", "field"),
    [
        ({}, b"{}", NOW, "webhook-signature"),
        ({"webhook-id": "y"}, BODY, NOW, "webhook-signature"),
        ({"webhook-timestamp": str(NOW + 1)}, BODY, NOW, "webhook-signature"),
        ({"webhook-signature": ""}, BODY, NOW, "webhook-signature"),
        ({"webhook-signature": "v2,AAAA v1a,AAAA v1,ü"}, BODY, NOW, "webhook-signature"),
        ({"webhook-signature": "v1,\udcff"}, BODY, NOW, "webhook-signature"),
        ({}, BODY, NOW + 301, "webhook-timestamp"),
        ({}, BODY, NOW - 301, "webhook-timestamp"),
        ({"webhook-timestamp": "now"}, BODY, NOW, "webhook-timestamp"),
        ({"webhook-timestamp": ""}, BODY, NOW, "webhook-timestamp"),
        ({"webhook-id": ""}, BODY, NOW, "webhook-id"),
    ],
)
def test_what_is_not_signed_fresh_and_whole_is_refused(
    changes: dict[str, str], body: bytes, now: int, field: str
) -> None:
    headers = signed_headers([SECRET], notice_id="x", timestamp=NOW, body=BODY)
    with pytest.raises(InvalidInputError) as refused:
        verify_webhook(SECRET, {**headers, **changes}, body, now=now)
    assert refused.value.field == field


def test_secret_of_another_form_is_told() -> None:
    headers = signed_headers([SECRET], notice_id="x", timestamp=NOW, body=BODY)
    with pytest.raises(InvalidInputError, match=r"^secret: must be whsec_ and Base64"):
        verify_webhook("whsec_ä", headers, BODY, now=NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_QUJD"])
def test_secret_that_anybody_could_guess_is_refused(secret: str) -> None:
    """A receiver whose variable is not set must not take what was signed with nothing."""
    headers = signed_headers([SECRET], notice_id="x", timestamp=NOW, body=BODY)
    with pytest.raises(InvalidInputError, match=r"^secret: must have at least 24 bytes"):
        verify_webhook(secret, headers, BODY, now=NOW)

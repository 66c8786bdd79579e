"""The client of a gateway: prompts in, ranked pictures out.

    with Client("127.0.0.1:50050") as client:
        for picture in client.generate("a blue cat on a yellow background", seed=7):
            picture.save(f"cat-{picture.candidate}.png")

`AsyncClient` has the same methods as coroutines and asynchronous iterators. Jobs and models are the messages of
`protos/smalti/v1/`. `SMALTI_SERVER` is the default address of the gateway; the settings `SMALTI_RPC_…` configure TLS.

A call that is answered with UNAVAILABLE is repeated, with growing pauses, for at most `retry_seconds`. No other error
is retried, except RESOURCE_EXHAUSTED in calls with `wait`. Errors are those of `smalti.errors`; an `InvalidInputError`
names the argument.
"""

from smalti.client.asynchronous import AsyncClient
from smalti.client.blocking import Client
from smalti.client.downloads import RemotePicture
from smalti.client.jobs import Event, has_ended
from smalti.client.requests import DEFAULT_SERVER, GenerateOptions

__all__ = [
    "DEFAULT_SERVER",
    "AsyncClient",
    "Client",
    "Event",
    "GenerateOptions",
    "RemotePicture",
    "has_ended",
]

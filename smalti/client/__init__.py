"""The client of the gateway: prompts in, ranked pictures out.

    with Client("127.0.0.1:50050") as client:
        for picture in client.generate("a blue cat on a yellow background", seed=7):
            picture.save(f"cat-{picture.candidate}.png")

`AsyncClient` has the same methods as coroutines and asynchronous iterators. Jobs and models are the messages of
`protos/smalti/v1/`. Where the gateway is, `SMALTI_SERVER` says, and how to reach it (TLS) the settings `SMALTI_RPC_…`.

Calls that are answered with UNAVAILABLE are repeated, with growing waits, for as long as the client's patience lasts;
nothing else is, but for RESOURCE_EXHAUSTED where that is asked for (`wait`). Errors are those of `smalti.errors`, and
`InvalidInputError` names the argument.
"""

from smalti.client.asking import DEFAULT_SERVER, GenerateOptions
from smalti.client.asynchronous import AsyncClient
from smalti.client.blocking import Client
from smalti.client.downloading import Picture
from smalti.client.following import Event, has_ended

__all__ = ["DEFAULT_SERVER", "AsyncClient", "Client", "Event", "GenerateOptions", "Picture", "has_ended"]

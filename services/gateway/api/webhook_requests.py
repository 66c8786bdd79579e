"""Who a request wants to be told of an end."""

from smalti.errors import InvalidInputError
from smalti.rpc.errors import within
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.spec import JobWebhook
from smalti.services.gateway.webhooks import WebhookRepository, check_url
from smalti.v1 import image_pb2


class WebhookRequests:
    """Checks the webhooks of requests; thread-safe, and every call blocks."""

    def __init__(self, context: GatewayContext) -> None:
        self._repository = WebhookRepository(context.database, context.clock)
        self._settings = context.webhooks

    def check(self, asked: image_pb2.Webhook, tenant: str) -> JobWebhook:
        """Returns whom a job or a batch tells of its end; raises `InvalidInputError`."""
        with within("webhook"):
            if asked.url:
                check_url(asked.url, "url", private=self._settings.private)
            found = self._repository.find(tenant)
            if found is None:
                raise InvalidInputError(
                    "url",
                    f"cannot be told anything: tenant {tenant} has no secret that signs; let the operator make one "
                    "(smalti tenants webhook set)",
                )
            if not asked.url and found.url is None:
                raise InvalidInputError("url", f"must be set, since tenant {tenant} has none of its own")
        include_prompt = asked.include_prompt if asked.HasField("include_prompt") else None
        return JobWebhook(url=asked.url or None, include_prompt=include_prompt)

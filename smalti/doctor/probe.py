"""A health check as a command, for containers: `python -m smalti.doctor.probe rpc [NAME]` or `... probe web`.

`rpc` asks the port `SMALTI_RPC_HEALTH_PORT` of this machine for the health of NAME, without it for that of the process
together with its object store. `web` asks `/readyz`. The exit status is 0 if it is healthy, and otherwise 1, with a
line on standard error.
"""

import http.client
import ssl
import sys
from collections.abc import Sequence
from typing import Any, Final

from smalti.entrance import begin
from smalti.errors import InvalidInputError
from smalti.network import address_of

SECONDS: Final = 6.0
"""Time in which the process must answer."""
STORE: Final = "store"


def main(arguments: Sequence[str]) -> int:
    """Asks, and returns the exit status."""
    try:
        match arguments:
            case ["rpc"]:
                problem = find_rpc_problem(STORE)
            case ["rpc", name]:
                problem = find_rpc_problem(name)
            case ["web"]:
                problem = find_web_problem()
            case _:
                problem = "must be called with rpc, with rpc and a name, or with web"
    except InvalidInputError as error:
        problem = str(error)
    if problem:
        print(f"smalti probe: {problem}", file=sys.stderr)
    return 1 if problem else 0


def find_rpc_problem(name: str) -> str:
    """Returns why the gRPC server of this machine is not healthy; empty if it is.

    Args:
        name: what is asked for: "store", a gRPC service, or "" for the process alone.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from smalti.rpc.settings import RPC_PREFIX, rpc_settings

    settings = rpc_settings()
    if not settings.health_port:
        raise InvalidInputError(
            f"{RPC_PREFIX}HEALTH_PORT", "is not set; set it to a port that answers health checks"
        )
    address = address_of(_here(settings.host), settings.health_port)
    # That port has no TLS. A proxy of the environment is for other machines.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # The types of the stub lack its methods.
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS)
        except grpc.RpcError as error:
            return f"{address} does not answer: {error.code().name.lower()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return f"{name or 'the process'} is {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"


def find_web_problem() -> str:
    """Returns why the web service of this machine is not ready; empty if it is.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
    """
    from smalti.services.web.settings import web_settings

    settings = web_settings()
    host = _here(settings.host)
    connection: http.client.HTTPConnection
    if settings.tls_certificate:
        context = ssl.create_default_context()
        context.check_hostname = False  # The certificate is for the name that others call.
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, settings.port, timeout=SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(host, settings.port, timeout=SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read(200).decode("ascii", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{address_of(host, settings.port)} does not answer: {error}"
    finally:
        connection.close()
    return "" if answer.status == http.client.OK else f"{answer.status}: {said}"


def _here(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


if __name__ == "__main__":
    begin("smalti probe", status=1)
    sys.exit(main(sys.argv[1:]))

"""An operator's policy as a process: `python -m harness.policy PORT`.

It refuses prompts with the word "weapon", the candidates that the label `refuse` names, and refined pictures if the
label `refuse` is "refined"; previews of a job with the label `private`; and it takes a minute over prompts with "slow".
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from harness.servers import HOST, Server, exchange
from smalti.v1 import policy_pb2
from smalti.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server

MESSAGE = "no weapons here"


class PolicyProcess(Server):
    """The process; can be stopped and started again on its port."""

    name = "policy"

    @property
    def url(self) -> str:
        """The address, as host:port."""
        return f"{HOST}:{self.port}"

    def _launch(self) -> None:
        self._run(sys.executable, "-m", "harness.policy", str(self.port))

    def _answers(self) -> bool:
        # A server of HTTP/2 speaks first.
        return exchange(self.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 1) != b""


class _Servicer(PolicyServiceServicer):
    def CheckPrompt(self, request: Any, context: Any) -> policy_pb2.CheckPromptResponse:  # noqa: N802
        if "slow" in request.prompt:
            time.sleep(60)
        refused = "weapon" in request.prompt
        verdict = policy_pb2.PolicyVerdict(refused=refused, message=MESSAGE if refused else "")
        return policy_pb2.CheckPromptResponse(verdict=verdict)

    def CheckPictures(self, request: Any, context: Any) -> policy_pb2.CheckPicturesResponse:  # noqa: N802
        refuse = request.labels.get("refuse", "").split(".")

        def is_refused(picture: Any) -> bool:
            if picture.unfinished:
                return "private" in request.labels
            return str(picture.candidate) in refuse or (
                "refined" in refuse and picture.data.startswith(b"refined")
            )

        verdicts = [
            policy_pb2.PolicyVerdict(refused=is_refused(picture), message=MESSAGE)
            for picture in request.pictures
        ]
        return policy_pb2.CheckPicturesResponse(verdicts=verdicts)


def main() -> None:
    """Serves until the process is ended."""
    server = grpc.server(ThreadPoolExecutor(16))
    add_PolicyServiceServicer_to_server(_Servicer(), server)
    server.add_insecure_port(f"{HOST}:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


def install_package(source: Path, target: Path) -> None:
    """Installs a package of the tests into a folder, with what is in this environment."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    command = (sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source))
    subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()

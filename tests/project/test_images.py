"""The images: which there are, what gets into a build, and where its packages come from."""

import fnmatch
import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from harness.paths import ROOT
from scripts import base_image, check_image, images
from scripts.lock_files import LOCKS, load_lock, version_of

DOCKERFILE = images.DOCKERFILE.read_text(encoding="utf-8")
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def stages() -> dict[str, str]:
    """Returns the text of each stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def ignored(path: str) -> bool:
    """Tells whether .dockerignore keeps a path out of the build; the last line that fits counts."""
    answer = False
    for line in IGNORE:
        pattern = line.removeprefix("!")
        parents = [path, *map(str, Path(path).parents)]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(each, pattern) for each in parents):
            answer = not line.startswith("!")
    return answer


def test_every_service_has_a_target_that_starts_it() -> None:
    services = {path.name for path in (ROOT / "services").iterdir() if (path / "__main__.py").exists()}
    assert set(images.SERVICES) == services | {"trainer"}
    for service in services:
        assert f'CMD ["python", "-m", "smalti.services.{service}"]' in stages()[service]


def test_images_are_for_a_number_without_rights_and_say_whether_they_are_healthy() -> None:
    assert not DOCKERFILE.startswith("# syntax=")  # It would ask a registry.
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "USER 10001:10001" in stages()["service"]
    for folder in ("/data", "/cache"):
        assert re.search(rf"chown 10001:10001 .*{folder}", stages()["service"])
    assert '"smalti.doctor.probe", "rpc"]' in stages()["service"]
    assert '"smalti.doctor.probe", "web"]' in stages()["web"]


def test_stand_ins_have_the_versions_of_the_locks() -> None:
    locked = load_lock(LOCKS / "up.txt")
    lines = (ROOT / "harness" / "stand_ins" / "versions.txt").read_text(encoding="utf-8").splitlines()
    for name, _, version in (line.partition("==") for line in lines):
        assert version == version_of(locked[name])


def test_packages_are_a_layer_below_the_source_and_every_lock_exists() -> None:
    for service in images.SERVICES:
        copies = re.findall(r"^COPY --from=(\S+)", stages()[service], re.MULTILINE)
        assert copies == [f"{service}-packages", "smalti"]
        packages = stages()[f"{service}-packages"]
        (lock,) = re.findall(r"install (\S+)(?: --\S+ \S+)*$", packages, re.MULTILINE)
        assert f"locks/{lock}.txt" in packages
        assert (ROOT / "locks" / f"{lock}.txt").exists()
        assert ("--jax" in packages) == (service in images.WITH_JAX)
        assert ("--torch" in packages) == (service in images.WITH_TORCH)


def test_images_with_compiled_programs_hold_them_for_the_user_alone() -> None:
    for service in images.COMPILED:
        assert f"--stage {service} " in stages()[f"{service}-programs"]
        made = stages()[f"{service}-compiled"]
        folder = re.findall(r"^ENV SMALTI_COMPILED=(\S+)$", made, re.MULTILINE)
        assert (
            re.findall(rf"^COPY --from={service}-programs --chown=10001:10001 \S+ (\S+)$", made, re.MULTILINE)
            == folder
        )
        options = images.parse([service, "--jax", "tpu", "--compile", "v5e:2x2", "--slots", "64"])
        name = images.name_of(options, service)
        assert name.endswith("-tpu-v5e-2x2")
        command = images.command_of(options, "buildah", service, name, {}, {})
        assert command[command.index("--target") + 1] == f"{service}-compiled"
        given = {each for each in command if each.partition("=")[0] in ("COMPILE", "MODEL", "SLOTS", "MESH")}
        # Every argument that is given is one of the stage.
        assert {each.partition("=")[0] for each in given} == {
            each.partition("=")[0]
            for each in re.findall(r"^ARG (\S+)$", stages()[f"{service}-programs"], re.MULTILINE)
        }
        assert "COMPILE=v5e:2x2" in given
        assert ("SLOTS=64" in given) == (service == "generator")


def test_every_file_that_is_copied_gets_into_the_build() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            found = [str(path.relative_to(ROOT)) for path in ROOT.glob(source)]
            assert found, source
            assert not any(map(ignored, found)), source
    for path in (".git/config", "tests/conftest.py", "data/x", "smalti/__pycache__/x.pyc"):
        assert ignored(path), path


@pytest.mark.parametrize("device", images.JAX_BUILDS)
def test_every_device_of_jax_has_a_lock_or_needs_none(device: str) -> None:
    assert (ROOT / "locks" / f"jax-{device}.txt").exists() == (device != "cpu")


def test_configuration_of_pip_is_a_secret_and_folders_are_mounted(tmp_path: Path) -> None:
    wheels, index, authority = tmp_path / "wheels", tmp_path / "index" / "simple", tmp_path / "ca.pem"
    wheels.mkdir()
    index.mkdir(parents=True)
    authority.write_text("a certificate")
    configuration = {
        "index-url": "https://user:secret@mirror.example/simple",
        "extra-index-url": f"{index.as_uri()} file:///nowhere/simple",
        "find-links": f"{wheels} /nowhere",
        "cert": str(authority),
        "constraint": "/etc/constraints.txt",
        "default-timeout": "180",
    }
    folders = images.local_folders(configuration)
    assert folders == {index.as_uri(): index.parent, str(wheels): wheels}
    secrets = images.write_secrets(tmp_path, configuration, folders)
    assert secrets["ca"] == authority
    assert secrets["pip"].read_text().splitlines() == [
        "[global]",
        "index-url = https://user:secret@mirror.example/simple",
        f"extra-index-url = {index.as_uri()}",
        f"find-links = {wheels}",
        "default-timeout = 180",
    ]
    options = images.parse(["gateway", "--jax", "tpu"])
    command = images.command_of(options, "buildah", "gateway", "a:b", secrets, folders)
    assert "secret@" not in " ".join(command)
    assert f"id=pip,src={secrets['pip']}" in command
    assert f"{wheels}:{wheels}:ro" in command
    assert not any(
        "--volume" in each
        for each in images.command_of(options, "docker", "gateway", "a:b", secrets, folders)
    )


def test_images_for_accelerators_have_names_of_their_own() -> None:
    options = images.parse(
        ["--jax", "cuda12", "--torch", "cuda", "--tag", "1", "--repository", "r.example/s"]
    )
    names = {
        service: images.name_of(options, service) for service in ("gateway", "decoder", "ranker", "trainer")
    }
    assert names == {
        "gateway": "r.example/s/gateway:1",
        "decoder": "r.example/s/decoder:1-cuda12",
        "ranker": "r.example/s/ranker:1-cuda",
        "trainer": "r.example/s/trainer:1-cuda12-cuda",
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("gate", "gate"),
        ("--jax=rocm", "rocm"),
        ("--jax=tpu --compile=v5e:2x2", "name the services, of generator and decoder"),
        ("--jax=tpu --compile=v5e:2x2 generator web", "name the services, of generator and decoder"),
        ("--jax=tpu --compile=v5e generator", "v5e must be a kind of TPU and its chips"),
        ("--compile=v5e:2x2 generator", "needs --jax tpu"),
    ],
)
def test_wrong_argument_is_one_line(arguments: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        images.parse(arguments.split())
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_installer_refuses_what_it_does_not_know() -> None:
    script = images.DOCKERFILE.with_name("install")
    done = subprocess.run([script, "gateway", "--jaxx", "cpu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "install: unknown option --jaxx\n")


def test_base_of_packages_is_kept_outside_the_repository_for_a_month(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # Has no mmdebstrap.
    with pytest.raises(SystemExit, match=r"base_image: .* install mmdebstrap, or name a base"):
        base_image.archive_of_packages()
    (tmp_path / "smalti" / "images").mkdir(parents=True)
    key = hashlib.sha256("\n".join((base_image.SUITE, *base_image.OPTIONS)).encode()).hexdigest()[:12]
    archive = tmp_path / "smalti" / "images" / f"base-bookworm-{key}.tar"
    archive.touch()
    assert base_image.archive_of_packages() == archive
    os.utime(archive, times=(0, 0))
    with pytest.raises(SystemExit):
        base_image.archive_of_packages()


def test_images_are_built_and_run_by_ci() -> None:
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1].split()
    assert steps[0] == "make"
    assert "image-check" in steps


def test_every_image_can_be_checked_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {check_image.kind_of(f"registry.example:5000/s/{service}:1") for service in images.SERVICES}
    assert kinds == set(check_image.CHECKS) == set(check_image.HOLDS)
    assert check_image.kind_of("smalti/web@sha256:0") == "web"
    with pytest.raises(
        SystemExit, match=r"check_image: smalti/base:1: its name must end with one of encoder, "
    ):
        check_image.kind_of("smalti/base:1")

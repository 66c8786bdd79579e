"""The public contract is clean, current and complete, and a client needs nothing else."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.api import field_behavior_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message

from harness.paths import ROOT
from smalti.rpc.reasons import REASONS
from smalti.v1 import (
    decoder_pb2,
    encoder_pb2,
    engine_pb2,
    errors_pb2,
    file_pb2,
    generator_pb2,
    image_pb2,
    job_pb2,
    model_pb2,
    prompt_pb2,
    ranker_pb2,
    refiner_pb2,
    sampling_pb2,
    tensor_pb2,
    tokens_pb2,
)

PROTOS = ROOT / "protos"
SCRIPT = ROOT / "scripts" / "protos.py"

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        decoder_pb2,
        encoder_pb2,
        engine_pb2,
        errors_pb2,
        file_pb2,
        generator_pb2,
        image_pb2,
        job_pb2,
        model_pb2,
        prompt_pb2,
        ranker_pb2,
        refiner_pb2,
        sampling_pb2,
        tensor_pb2,
        tokens_pb2,
    )
]
MESSAGES: list[Descriptor] = [
    message for file in FILES for _, message in sorted(file.message_types_by_name.items())
]
SERVICES = {name: service for file in FILES for name, service in sorted(file.services_by_name.items())}


def protos_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "scripts" / "protos.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of everything that the script reads and writes."""
    shutil.copytree(PROTOS, tmp_path / "protos")
    shutil.copytree(ROOT / "smalti" / "v1", tmp_path / "smalti" / "v1")
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.process
def test_contract_passes_its_own_check() -> None:
    done = protos_script(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.process
def test_outdated_generated_code_is_found_and_replaced(copy: Path) -> None:
    file = copy / "protos" / "smalti" / "v1" / "tokens.proto"
    edit(
        file, "  repeated int32 tokens = 3;\n", "  repeated int32 tokens = 3;\n  // New.\n  bool last = 4;\n"
    )
    (copy / "smalti" / "v1" / "left_pb2.py").write_text("# Generated from a file that was removed.\n")
    done = protos_script(copy, "--check")
    assert done.returncode == 1
    assert (
        "protos: outdated: left_pb2.py, tokens_pb2.py, tokens_pb2.pyi, smalti-v1.binpb; run `make protos`"
        in done.stdout
    )
    assert protos_script(copy).returncode == 0
    assert not (copy / "smalti" / "v1" / "left_pb2.py").exists()
    assert protos_script(copy, "--check").returncode == 0


@pytest.mark.process
def test_breaking_change_is_refused_until_it_is_accepted(copy: Path) -> None:
    edit(copy / "protos" / "smalti" / "v1" / "tokens.proto", "int32 start = 2", "int64 start = 2")
    before = (copy / "smalti" / "v1" / "tokens_pb2.py").read_bytes()
    for arguments in ((), ("--check",)):
        done = protos_script(copy, *arguments)
        assert done.returncode == 1
        assert "breaks existing clients" in done.stdout
        assert (copy / "smalti" / "v1" / "tokens_pb2.py").read_bytes() == before
    assert protos_script(copy, "--accept-breaking").returncode == 0
    assert protos_script(copy, "--check").returncode == 0


@pytest.mark.process
def test_missing_comment_is_found(copy: Path) -> None:
    edit(copy / "protos" / "smalti" / "v1" / "tokens.proto", "  // The tokens.\n", "")
    done = protos_script(copy, "--check")
    assert done.returncode == 1
    assert 'Field "tokens" should have a non-empty comment' in done.stdout


def test_copies_of_google_files_are_unchanged() -> None:
    ours = sorted(PROTOS.glob("google/*/*.proto"))
    assert ours
    for file in ours:
        original = files(f"google.{file.parent.name}").joinpath(file.name)
        assert file.read_text(encoding="utf-8") == original.read_text(encoding="utf-8")


def value_of(field: FieldDescriptor, depth: int) -> object:
    """Returns a value of a field that differs from its default."""
    if field.message_type is not None:
        return filled(field.message_type, depth + 1)
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    return {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_STRING: "✓" if field.type == FieldDescriptor.TYPE_STRING else b"\x00\xff",
        FieldDescriptor.CPPTYPE_DOUBLE: 0.1,
        FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
        FieldDescriptor.CPPTYPE_INT32: -5,
    }[field.cpp_type]


def filled(descriptor: Descriptor, depth: int = 0) -> Message:
    """Returns a message with every field set; in a oneof, the last one."""
    message = message_factory.GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Any":
        return message
    for field in descriptor.fields:
        if descriptor.full_name.startswith("google.protobuf."):
            setattr(
                message, field.name, 1000
            )  # Times and durations; a thousand nanoseconds are a microsecond.
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["key"] = "value"
        elif field.is_repeated and field.message_type is not None:
            getattr(message, field.name).add().CopyFrom(value_of(field, depth))
        elif field.is_repeated:
            getattr(message, field.name).append(value_of(field, depth))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value_of(field, depth))
        else:
            setattr(message, field.name, value_of(field, depth))
    return message


@pytest.mark.parametrize("descriptor", MESSAGES, ids=lambda descriptor: descriptor.name)
def test_message_survives_the_wire_and_json(descriptor: Descriptor) -> None:
    message = filled(descriptor)
    assert type(message).FromString(message.SerializeToString()) == message
    assert json_format.Parse(json_format.MessageToJson(message), type(message)()) == message
    assert {field.name for field, _ in message.ListFields()} >= {
        field.name for field in descriptor.fields if field.containing_oneof is None
    }


def requests() -> Iterator[Descriptor]:
    """Yields every message that is part of a request."""
    waiting = [method.input_type for service in SERVICES.values() for method in service.methods]
    seen: set[str] = set()
    while waiting:
        message = waiting.pop()
        if message.full_name in seen or not message.full_name.startswith("smalti."):
            continue
        seen.add(message.full_name)
        if not message.GetOptions().map_entry:
            yield message
        waiting += [field.message_type for field in message.fields if field.message_type is not None]


# Parts of responses that a client sends back unchanged in a request.
RECEIVED = {"smalti.v1.PromptReading"}


def test_every_field_of_a_request_is_marked_required_or_optional() -> None:
    for message in requests():
        for field in message.fields:
            options: Any = field.GetOptions()
            behaviour = list(options.Extensions[field_behavior_pb2.field_behavior])
            known = [field_behavior_pb2.REQUIRED], [field_behavior_pb2.OPTIONAL]
            assert behaviour in known or message.full_name in RECEIVED, field.full_name


def test_error_reasons_match_the_table() -> None:
    reasons: EnumDescriptor = errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"]
    names = {value.name.removeprefix("ERROR_REASON_") for value in reasons.values if value.number}
    assert names == {reason.name for reason in REASONS}
    text = (PROTOS / "smalti" / "v1" / "errors.proto").read_text(encoding="utf-8")
    for reason in REASONS:
        comment = re.search(rf"((?:  //[^\n]*\n)+)  ERROR_REASON_{reason.name} = ", text)
        assert comment is not None
        assert comment[1].strip().startswith(f"// {reason.code.name}")
        assert ("ResourceInfo" in comment[1]) == bool(reason.resource)
        if reason.resource:
            assert f'of type "{reason.resource}"' in comment[1]


def test_api_page_lists_every_method_and_reason() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+\.\w+)` \|", text, re.MULTILINE))
    methods = {f"{name}.{method.name}" for name, service in SERVICES.items() for method in service.methods}
    assert rows == methods
    statuses = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (\d+) \|", text, re.MULTILINE)
    assert sorted(statuses) == sorted(
        (reason.name, reason.code.name, str(reason.http_status)) for reason in REASONS
    )

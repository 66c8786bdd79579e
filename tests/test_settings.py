"""Reading the settings, and their documentation."""

import pwd
import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from harness.paths import DOCS
from smalti.errors import InvalidInputError
from smalti.messages import MessageSettings
from smalti.queue.settings import BrokerSettings, broker_settings
from smalti.registry.importing import choose_folder
from smalti.registry.library import list_models
from smalti.rpc.settings import RpcSettings
from smalti.service.settings import ServiceSettings
from smalti.services.gateway.settings import GatewaySettings, gateway_settings
from smalti.services.gateway.webhooks import WebhookSettings
from smalti.services.generator.settings import GroupSettings
from smalti.services.web.settings import WebSettings
from smalti.settings import PREFIX, Settings, is_set, settings
from smalti.storage.settings import StoreSettings, store_settings
from smalti.telemetry.settings import LogSettings, MetricsSettings

DOCUMENTS = DOCS
KINDS: tuple[type[BaseSettings], ...] = (
    Settings,
    RpcSettings,
    ServiceSettings,
    BrokerSettings,
    MessageSettings,
    StoreSettings,
    GatewaySettings,
    WebhookSettings,
    GroupSettings,
    WebSettings,
    LogSettings,
    MetricsSettings,
)


def test_environment_sets_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_MODELS", "/somewhere")
    monkeypatch.setenv("SMALTI_OFFLINE", "1")
    monkeypatch.setenv("SMALTI_HUB_CACHE", "")
    assert settings().models == Path("/somewhere")
    assert settings().offline
    assert settings().hub_cache is None


def test_files_of_a_folder_set_what_no_variable_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMALTI_BROKER_URL", "SMALTI_BROKER_ATTEMPTS", "SMALTI_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMALTI_SECRETS", str(tmp_path))
    monkeypatch.setenv("SMALTI_BROKER_HEARTBEAT", "20")
    (tmp_path / "SMALTI_BROKER_URL").write_text("redis://:secret@127.0.0.1:6380/0\n")
    (tmp_path / "SMALTI_BROKER_HEARTBEAT").write_text("30")
    (tmp_path / "SMALTI_OFFLINE").write_text("1")
    assert broker_settings().url.get_secret_value() == "redis://:secret@127.0.0.1:6380/0"
    assert broker_settings().heartbeat == 20
    assert settings().offline
    assert is_set("SMALTI_BROKER_URL")
    assert not is_set("SMALTI_STORE_URL")
    (tmp_path / "SMALTI_BROKER_ATTEMPTS").write_text("none")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_BROKER_ATTEMPTS: "):
        broker_settings()
    monkeypatch.setenv("SMALTI_SECRETS", str(tmp_path / "missing"))
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_SECRETS: .*missing is not a folder that can be read"
    ):
        broker_settings()


def test_default_folder_of_models_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALTI_MODELS", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    for data, folder in (
        ("/data", "/data/smalti/models"),
        ("", "/home/somebody/.local/share/smalti/models"),
        ("relative", "/home/somebody/.local/share/smalti/models"),
    ):
        monkeypatch.setenv("XDG_DATA_HOME", data)
        assert settings().models == Path(folder)


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's bare user id: no entry in the table of users, and no variable that says where to keep things."""
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "SMALTI_MODELS", "SMALTI_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SMALTI_BROKER_JOURNAL", "SMALTI_STORE_URL", "SMALTI_GATEWAY_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])


def test_without_a_home_only_what_needs_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_home(monkeypatch)
    assert settings().models is None
    assert settings().compilation_cache is None
    assert [each.name for each in list_models()] == ["pictograms"]
    with pytest.raises(InvalidInputError, match=r"^out: must be given: this user has no home"):
        choose_folder("mine", None)
    for read, variable in (
        (broker_settings, "SMALTI_BROKER_JOURNAL"),
        (store_settings, "SMALTI_STORE_URL"),
        (gateway_settings, "SMALTI_GATEWAY_DATABASE"),
    ):
        with pytest.raises(
            InvalidInputError, match=rf"^{variable}: is not set, and this user has no home"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
        monkeypatch.setenv(variable, f"file://{tmp_path}")
        read()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert settings().models == tmp_path / "smalti/models"


def test_home_that_is_no_absolute_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    monkeypatch.setenv("HOME", "here")
    assert settings().models is None


def test_invalid_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_OFFLINE", "perhaps")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_OFFLINE: input should be a valid boolean"):
        settings()


def test_empty_variable_counts_as_unset_except_for_the_compilation_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"{PREFIX}{name}".upper(), "")
    empty = settings()
    assert empty.compilation_cache is None
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name}".upper())
    assert empty == settings().model_copy(update={"compilation_cache": None})


def test_every_setting_is_documented() -> None:
    variables = {
        f"{kind.model_config['env_prefix']}{name}".upper() for kind in KINDS for name in kind.model_fields
    }
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS.glob("*.md")]
    rows = re.findall(r"^\| `(SMALTI_\w+)` \|", "\n".join(texts), re.MULTILINE)
    assert sorted(rows) == sorted(variables)
    assert all(field.description for kind in KINDS for field in kind.model_fields.values())
    assert all(variable.startswith(PREFIX) for variable in variables)

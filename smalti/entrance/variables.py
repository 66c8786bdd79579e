"""Variables of the environment that our libraries read, what they would do to us, and what we do about it.

They are meant for other programs of the same user or container, and many libraries read them when they are imported.
`neutralise` is called before that. `docs/environment.md` has the same table for readers; a test compares them.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from smalti.entrance.proxies import spare_this_machine

__all__ = ["RULES", "Ignored", "Rule", "any_value", "ignored", "inherited", "neutralise", "rule_for"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is done about the variables of a pattern."""

    names: tuple[str, ...]
    """Names of variables, with `*` for any characters."""
    library: str
    """Who reads them."""
    effect: str
    """What they would do to Smalti."""
    valid: Callable[[str], bool] | None = None
    """Whether a value is left alone; None if every value is removed."""


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A variable that was removed."""

    name: str
    rule: Rule

    def __str__(self) -> str:
        why = "its value is not valid" if self.rule.valid else self.rule.effect
        return f"{self.name} is ignored ({self.rule.library}): {why}"


def any_value(value: str) -> bool:
    """Takes every value."""
    return True


def _number(value: str) -> bool:
    return re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) is not None


def _count(value: str) -> bool:
    return re.fullmatch(r"0*[1-9]\d{0,5}(,0*[1-9]\d{0,5})*", value) is not None


def _switch(value: str) -> bool:
    return value.lower() in {"0", "1", "true", "false", "yes", "no", "on", "off"}


def _one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value.lower() in values


def _rule(names: str, library: str, effect: str, valid: Callable[[str], bool] | None = None) -> Rule:
    return Rule(names=tuple(names.split()), library=library, effect=effect, valid=valid)


RULES: Final = (
    # Where messages go is said by SMALTI_BROKER_URL alone.
    _rule(
        "CELERY_* CELERYD_* C_FAKEFORK C_FORCE_ROOT C_IMPDEBUG C_REMDEBUG C_STRICT_APP C_WARN_APP C_WNOCONF "
        "FORKED_BY_MULTIPROCESSING WORKER_LOGLEVEL USE_FAST_LOCALS MP_LOG",
        "Celery",
        "CELERY_BROKER_URL would replace SMALTI_BROKER_URL, others the worker's loader and its log",
    ),
    _rule("DJANGO_*", "Celery", "it would load another program's Django project"),
    _rule("KOMBU_* DISABLE_TRACEBACKS PICKLE_PROTOCOL", "Kombu", "it would log messages, with their prompts"),
    _rule(
        "PROMETHEUS_* prometheus_multiproc_dir",
        "Prometheus",
        "metrics would be kept in files of another program, and a missing folder ends the start",
    ),
    # gRPC. These first, since the first rule that fits counts.
    _rule("GRPC_VERBOSITY", "gRPC", "level of gRPC's own log", _one_of("debug", "info", "error", "none")),
    _rule("GRPC_DNS_RESOLVER", "gRPC", "how names are resolved", _one_of("ares", "native")),
    _rule(
        "GRPC_TRACE GRPC_DEFAULT_SSL_ROOTS_FILE_PATH GRPC_SYSTEM_SSL_ROOTS_DIR GRPC_NOT_USE_SYSTEM_SSL_ROOTS "
        "GRPC_SSL_CIPHER_SUITES",
        "gRPC",
        "gRPC's own log, and whom it trusts; SMALTI_RPC_TLS_CA goes before",
        any_value,
    ),
    _rule("GRPC_*", "gRPC", "an unknown poll strategy ends the process; others change how calls are made"),
    # JAX. Most of its options change what is computed, and so the pictures of a seed.
    _rule(
        "JAX_PLATFORMS JAX_PLATFORM_NAME JAX_*_VISIBLE_DEVICES JAX_COMPILATION_CACHE_DIR JAX_DUMP_IR_TO",
        "JAX",
        "which device computes; one that is not there is refused at the start",
        any_value,
    ),
    _rule("JAX_NUM_CPU_DEVICES", "JAX", "devices on a CPU", _count),
    _rule("JAX_PERSISTENT_CACHE_*", "JAX", "what its cache keeps", _number),
    _rule(
        "JAX_ENABLE_COMPILATION_CACHE JAX_LOG_COMPILES JAX_EXPLAIN_CACHE_MISSES JAX_DEBUG_NANS JAX_DEBUG_INFS",
        "JAX",
        "cache and debugging",
        _switch,
    ),
    _rule("JAX_LOGGING_LEVEL", "JAX", "level of JAX's own log", _one_of("debug", "info", "warning", "error")),
    _rule(
        "JAX_TRACEBACK_FILTERING",
        "JAX",
        "how tracebacks are shown",
        _one_of("off", "tracebackhide", "remove_frames", "quiet_remove_frames", "auto"),
    ),
    _rule(
        "JAX_* JAXTYPING_*",
        "JAX",
        "equal seeds would give other pictures, or an invalid value ends the start",
    ),
    _rule(
        "XLA_* LIBTPU_* TPU_* CUDA_* NVIDIA_* ROCM_* HIP_* HSA_* TF_*",
        "XLA",
        "the device and its compiler; an unknown flag is refused at the start",
        any_value,
    ),
    # Threads of native libraries.
    _rule("OMP_NUM_THREADS", "OpenMP", "number of threads", _count),
    _rule("OMP_WAIT_POLICY", "OpenMP", "whether idle threads spin", _one_of("active", "passive")),
    _rule(
        "MKL_NUM_THREADS OPENBLAS_NUM_THREADS RAYON_NUM_THREADS NUMEXPR_NUM_THREADS GOTO_NUM_THREADS",
        "OpenMP, MKL, OpenBLAS, Rayon",
        "number of threads",
        _count,
    ),
    _rule(
        "OMP_* GOMP_* KMP_* MKL_* OPENBLAS_*",
        "OpenMP, MKL, OpenBLAS",
        "threads; the library says which value it cannot read",
        any_value,
    ),
    _rule("TOKENIZERS_PARALLELISM", "tokenizers", "whether it uses threads", _switch),
    _rule(
        "NPY_* PILLOW_* ARROW_DEFAULT_MEMORY_POOL", "NumPy, Pillow, Arrow", "an invalid value ends the start"
    ),
    _rule(
        "PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF TORCH_HOME",
        "PyTorch",
        "memory, and a folder of models",
        any_value,
    ),
    _rule(
        "TORCH_* TORCHDYNAMO_* TORCHINDUCTOR_* PYTORCH_*",
        "PyTorch",
        "what is computed, and what is logged; an invalid value ends the start",
    ),
    _rule(
        "ORBAX_* ENABLE_ORBAX_* ENABLE_PATHWAYS_*", "Orbax", "a second port for metrics, another way to save"
    ),
    # The hub.
    _rule("HF_HUB_DOWNLOAD_TIMEOUT HF_HUB_ETAG_TIMEOUT", "huggingface_hub", "time limits", _number),
    _rule("HF_HUB_OFFLINE HF_HUB_DISABLE_* HF_HUB_ENABLE_*", "huggingface_hub", "switches", _switch),
    _rule(
        "HF_*",
        "huggingface_hub",
        "where `smalti pull` finds models and keeps downloads, if SMALTI_HUB_ENDPOINT and SMALTI_HUB_CACHE do not say",
        any_value,
    ),
    _rule("TQDM_*", "tqdm", "an invalid value ends the start"),
    # Databases.
    _rule(
        "PGPASSWORD PGPASSFILE PGSSLCERT PGSSLKEY PGSSLROOTCERT PGSSLCRL PGSSLCRLDIR",
        "libpq",
        "password and certificates of PostgreSQL that SMALTI_GATEWAY_DATABASE does not name",
        any_value,
    ),
    _rule(
        "PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGSERVICE PGSERVICEFILE PGSYSCONFDIR PGOPTIONS PGAPPNAME "
        "PGCLIENTENCODING PGTZ PGDATESTYLE PGGEQO PGSSL* PGGSS* PGREQUIRE* PGKRBSRVNAME PGCHANNELBINDING "
        "PGCONNECT_TIMEOUT PGTARGETSESSIONATTRS PGLOADBALANCEHOSTS PGM??PROTOCOLVERSION PGOAUTHDEBUG",
        "libpq",
        "PGHOSTADDR would connect to another database than SMALTI_GATEWAY_DATABASE says, others change the session",
    ),
    _rule("PSYCOPG_*", "psycopg", "another implementation, which may be missing"),
    # HTTP.
    _rule(
        "WEB_CONCURRENCY FORWARDED_ALLOW_IPS UVICORN_* FASTAPI_*",
        "uvicorn, FastAPI",
        "whose headers are believed (SMALTI_WEB_PROXIES says), and how many processes there are",
    ),
    _rule(
        "SSLKEYLOGFILE", "urllib3, Python's ssl", "the keys of all TLS connections would be written to a file"
    ),
    _rule(
        "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE OPENSSL_CONF",
        "OpenSSL",
        "the authorities of the system; a setting that names authorities goes before",
        any_value,
    ),
    _rule(
        "AWS_* MINIO_*",
        "minio",
        "address, region and keys of s3:// addresses of `smalti batch` that SMALTI_STORE_* does not name; nothing else",
        any_value,
    ),
    _rule(
        "http_proxy https_proxy all_proxy grpc_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY no_proxy NO_PROXY no_grpc_proxy",
        "gRPC, urllib, httpx",
        "connections to other machines go through the proxy; those to this machine never do",
        any_value,
    ),
    # Traces.
    _rule(
        "OTEL_PYTHON_* OTEL_PROPAGATORS OTEL_CONFIG_FILE OTEL_EXPERIMENTAL_*",
        "OpenTelemetry",
        "another implementation of traces, which may be missing",
    ),
    _rule("OTEL_*", "OpenTelemetry", "traces; see the settings", any_value),
    # Commands.
    _rule("TYPER_*", "Typer", "an invalid value ends the start"),
)


def rule_for(name: str) -> Rule | None:
    """Returns the first rule for a variable; None for one that concerns none of our libraries."""
    return next((rule for rule in RULES if any(_fits(name, each) for each in rule.names)), None)


def _fits(name: str, pattern: str) -> bool:
    # Most differ at the beginning, and a pattern that is matched is compiled first, at the start of every command.
    return name.startswith(pattern.partition("*")[0].partition("?")[0]) and fnmatchcase(name, pattern)


_ignored: dict[str, Ignored] = {}
_inherited: dict[str, str] = {}


def neutralise() -> None:
    """Removes the variables of this process that are meant for others, and keeps connections to itself from proxies."""
    for name, value in list(os.environ.items()):
        rule = rule_for(name)
        if rule is not None and (rule.valid is None or (value != "" and not rule.valid(value))):
            _inherited[name] = os.environ.pop(name)
            _ignored[name] = Ignored(name=name, rule=rule)
    os.environ.update(spare_this_machine(os.environ))


def ignored() -> list[Ignored]:
    """Returns the variables that were removed, by name."""
    return [_ignored[name] for name in sorted(_ignored)]


def inherited() -> Mapping[str, str]:
    """Returns the environment for a program of the user: that of this process, with what was removed."""
    return {**os.environ, **_inherited}

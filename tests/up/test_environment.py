"""The whole system with every variable that our libraries read set to nonsense."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smalti.entrance.variables import RULES, any_value
from smalti.registry.folder import ModelFolder

NAMES = """
CELERY_BROKER_URL CELERY_BROKER_READ_URL CELERY_BROKER_WRITE_URL CELERY_RESULT_BACKEND CELERY_CONFIG_MODULE
CELERY_LOADER CELERY_CUSTOM_WORKER_POOL CELERY_TRACE_APP CELERYD_HIJACK_ROOT_LOGGER C_FORCE_ROOT
DJANGO_SETTINGS_MODULE KOMBU_LOG_CONNECTION KOMBU_LOG_CHANNEL PROMETHEUS_MULTIPROC_DIR
PROMETHEUS_DISABLE_CREATED_SERIES GRPC_POLL_STRATEGY GRPC_EXPERIMENTS GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS
GRPC_ADDRESS_HTTP_PROXY JAX_ENABLE_X64 JAX_DEFAULT_PRNG_IMPL JAX_NUMPY_DTYPE_PROMOTION JAX_DEFAULT_MATMUL_PRECISION
JAX_DISABLE_JIT JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS JAXTYPING_DISABLE NPY_DISABLE_CPU_FEATURES
PILLOW_BLOCK_SIZE TORCH_LOGS TORCH_SHOW_CPP_STACKTRACES TORCHDYNAMO_DISABLE ENABLE_ORBAX_PROMETHEUS_TELEMETRY
ORBAX_PROMETHEUS_PORT HF_HUB_DISABLE_XET HF_HUB_ENABLE_HF_TRANSFER TQDM_MININTERVAL PSYCOPG_IMPL PGSSLMODE
PGREQUIRESSL PGMINPROTOCOLVERSION PGMAXPROTOCOLVERSION UVICORN_PORT WEB_CONCURRENCY FASTAPI_ENV OTEL_PYTHON_CONTEXT
OTEL_PYTHON_TRACER_PROVIDER OTEL_EXPERIMENTAL_RESOURCE_DETECTORS OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT
OTEL_BSP_SCHEDULE_DELAY OTEL_TRACES_SAMPLER TYPER_USE_RICH OMP_STACKSIZE OMP_PROC_BIND KMP_AFFINITY KMP_BLOCKTIME
MKL_THREADING_LAYER MKL_CBWR OPENBLAS_CORETYPE TF_CPP_MIN_LOG_LEVEL CUDA_VISIBLE_DEVICES HF_TOKEN HF_ENDPOINT
AWS_ACCESS_KEY_ID AWS_REGION MINIO_ACCESS_KEY
"""
"""Names for the patterns of the rules, and the best known ones."""
REFUSED = {"JAX_PLATFORMS", "JAX_PLATFORM_NAME", "XLA_FLAGS", "OPENSSL_CONF"}
"""What the operator means for these programs, too: nonsense in it is refused at the start, or by the interpreter."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NOBODY = "http://127.0.0.1:9"
"""A proxy at which nobody listens."""


def nonsense() -> dict[str, str]:
    exact = {name for rule in RULES for name in rule.names if "*" not in name and "?" not in name}
    names = (exact | set(NAMES.split())) - REFUSED
    checked = {name for rule in RULES if rule.valid not in (None, any_value) for name in rule.names}
    assert checked  # Nonsense is of the wrong form, so these are removed.
    found = dict.fromkeys(names, "nonsense")
    return {**found, **dict.fromkeys(PROXIES, NOBODY), "no_proxy": "", "NO_PROXY": ""}


@pytest.mark.slow
@pytest.mark.server
def test_system_draws_whatever_other_programs_have_set(tiny: ModelFolder, tmp_path: Path) -> None:
    up = ["up", "--model", str(tiny.path), "--ports", "free", "--data", str(tmp_path / "up"), "--"]
    draw = [
        "generate",
        "a red fox",
        "--seed",
        "1",
        "--n",
        "1",
        "--candidates",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    command = [sys.executable, "-m", "smalti", *up, sys.executable, "-m", "smalti", *draw]
    done = subprocess.run(
        command,
        env={**os.environ, **nonsense()},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    drawn = list((tmp_path / "out").glob("*.png"))
    assert len(drawn) == 1
    # The pictures are those of an environment without nonsense.
    plain = [sys.executable, "-m", "smalti", *draw[:-1], str(tmp_path / "plain"), "--model", str(tiny.path)]
    subprocess.run(plain, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "plain" / drawn[0].name).read_bytes() == drawn[0].read_bytes()

"""The gateway's settings. The variable of a field is `SMALTI_GATEWAY_` and the field's name."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from smalti.messages import MAX_IN_CHUNK
from smalti.network import is_this_machine
from smalti.settings import PREFIX, EnvironmentSettings, Seconds, data_folder, read_settings

GATEWAY_PREFIX = f"{PREFIX}GATEWAY_"


class HookSubjects(StrEnum):
    """What a policy's hook is asked about."""

    ALL = "all"
    PROMPTS = "prompts"
    PICTURES = "pictures"


class HookAway(StrEnum):
    """What happens while a policy's hook does not answer."""

    REFUSE = "refuse"
    """Prompts are UNAVAILABLE, and jobs wait for the verdicts on their pictures."""
    PERMIT = "permit"


def _default_database() -> SecretStr:
    return SecretStr(f"sqlite:///{data_folder(f'{GATEWAY_PREFIX}DATABASE') / 'gateway.sqlite3'}")


class GatewaySettings(EnvironmentSettings):
    """The settings; all times are in seconds."""

    model_config = SettingsConfigDict(env_prefix=GATEWAY_PREFIX)

    database: SecretStr = Field(default_factory=_default_database)
    """Database of the jobs: `sqlite:////FOLDER/FILE` for a single gateway, or
    `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, which several gateways may share. The tables are created, and
    migrated, at the start. A server on another machine must have a certificate for its name, of an authority of the
    system or of `?sslrootcert=FILE`."""
    migrate: bool = True
    """Whether the gateway creates and migrates the tables at its start. If not, it waits up to two minutes until
    `smalti migrate` has done so, and then ends with code 2."""
    database_timeout: Seconds = 5.0
    """Time a call waits for the database before it is answered with UNAVAILABLE."""
    decoder: str | None = None
    """`HOST:PORT` of a decoder, for previews and for initial images given as files, of the configured model and of
    those with the same VQGAN. Decoders that say hello serve the others, and all when it is unset."""
    refiner: bool = False
    """Whether refiners take work from the queues. While it is off, jobs that refine or enlarge pictures are refused,
    unless a refiner of their model has said hello."""
    chunk: Annotated[int, Field(ge=1, le=MAX_IN_CHUNK)] = 4
    """Candidates per chunk. The candidates of a chunk travel through the queues together."""
    window: Annotated[int, Field(ge=1, le=2**20)] = 128
    """Maximum number of candidates in the queues at a time. The rest waits in the database, where order and priority
    are kept. It holds for the configured model while its generators say no hello; other revisions have twice the slots
    of their generators. If it is set, it also bounds all together."""
    turn: Annotated[int, Field(ge=1, le=1024)] = 16
    """Candidates that a tenant of weight 1 may send in its turn, while others wait; a chunk is always sent whole."""
    open_jobs: Annotated[int, Field(ge=1, le=10**6)] = 10_000
    """Maximum number of open jobs, for all gateways together. Further requests are refused with RESOURCE_EXHAUSTED."""
    stored_jobs: Annotated[int, Field(ge=1, le=10**8)] = 1_000_000
    """Maximum number of jobs in the database, open and ended. Further requests are refused."""
    stored_bytes: Annotated[int, Field(ge=2**20)] = 10 * 2**30
    """Maximum size of what the requests of these jobs have brought: prompts, labels and initial images, in bytes."""
    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Maximum number of jobs that a tenant may create in a minute. This and the next three hold for each tenant without
    a limit of its own; unset, there is none."""
    candidates_per_day: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Maximum number of candidates that a tenant may ask for in a day (UTC)."""
    batch_slots: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Maximum number of candidates of a tenant's batch jobs in the queues at a time. The rest waits."""
    prompt_characters: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Maximum length of a prompt; the contract has a maximum of its own."""
    open_batches: Annotated[int, Field(ge=1, le=10**5)] = 100
    """Maximum number of batches of a tenant that have not ended. Further ones are refused with RESOURCE_EXHAUSTED."""
    plans: bool = True
    """Whether this gateway reads, checks and cuts the inputs of batches, and writes their manifests. Another one must
    do it if not."""
    candidates: Annotated[int, Field(ge=1, le=1024)] = 256
    """Maximum number of candidates of a job."""
    idle_candidates: Annotated[int, Field(ge=0, le=1024)] = 32
    """Candidates of a job that does not set a number, while no other job is open. The model's default is used where it
    is higher."""
    time_limit: Seconds = 24 * 3600.0
    """Maximum time limit of a job. A job that has not ended by its time limit expires."""
    default_time_limit: Seconds = 3600.0
    """Time limit of a job that does not set one."""
    retention: Seconds = 7 * 24 * 3600.0
    """Maximum time for which a job and its pictures are kept after its end. Objects are never kept longer than
    `SMALTI_STORE_EXPIRY_DAYS`."""
    default_retention: Seconds = 24 * 3600.0
    """Time for which a job that does not set one is kept."""
    image_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 8 * 2**20
    """Maximum size of the file of an initial image, in bytes. Must be smaller than `SMALTI_RPC_RECEIVE_BYTES`."""
    file_bytes: Annotated[int, Field(ge=1024, le=2**43)] = 4 * 2**30
    """Maximum size of a file that clients upload, in bytes. While it arrives, it is in the folder for temporary files
    (`TMPDIR`), which needs room for several."""
    stored_files: Annotated[int, Field(ge=1, le=10**7)] = 10_000
    """Maximum number of files that a tenant has stored. Further ones are refused."""
    stored_file_bytes: Annotated[int, Field(ge=2**20, le=2**60)] = 100 * 2**30
    """Maximum size of the files that a tenant has stored, in bytes."""
    labels: Annotated[int, Field(ge=0, le=1000)] = 16
    """Maximum number of labels of a job."""
    lease: Seconds = 120.0
    """Time without an event of a chunk after which the chunk is sent again. It doubles with every loss."""
    shard_lease: Seconds = 600.0
    """Time without an event of a shard of a batch after which the shard is sent again, while no worker is known to work
    on it: it may wait in a queue behind others. While one does, `SMALTI_GATEWAY_LEASE` holds."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 6
    """Failed attempts at a chunk after which its job fails."""
    retry: Seconds = 5.0
    """Delay before a chunk that a stage has given up is sent again. It doubles with every attempt."""
    sweep: Seconds = 0.5
    """Interval between checks for lost leases, expired jobs, and jobs to delete."""
    watch: Seconds = 1.0
    """Interval between checks for changes that other gateways have made to watched jobs; ten times as long while
    PostgreSQL reports them."""
    previews: Seconds = 1.0
    """Minimum time between two previews of a job."""
    url_lifetime: Seconds = 3600.0
    """Lifetime of the signed URL of a picture."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Events handled at the same time."""
    policy_list: Path | None = None
    """File of words and patterns that no prompt may contain; read again when it changes."""
    policy_hook: str | None = None
    """Whom to ask what may be drawn: `HOST:PORT` of a `PolicyService`, or the name of an entry point of the group
    `smalti.policies`."""
    policy_subjects: HookSubjects = HookSubjects.ALL
    """What the hook is asked about: `all`, `prompts` or `pictures`."""
    policy_away: HookAway = HookAway.REFUSE
    """What happens while the hook does not answer: `refuse` makes prompts UNAVAILABLE, and jobs wait for the verdicts
    on their pictures until their time limit; `permit` goes on."""
    policy_timeout: Seconds = 10.0
    """Time that the hook has for a verdict on a prompt, or on the pictures of a job."""

    auth_names: str = ""
    """With mTLS, whose certificate a name (SAN) is: entries `NAME=TENANT` or `NAME=TENANT:ROLE+ROLE` with commas
    between them; the roles are `draw`, `batch` and `admin`, and the first two if none are given. Unset: every
    certificate of the authority belongs to the tenant `default`."""
    jwt_issuer: str | None = None
    """Issuer of tokens, as their claim `iss` has it; needed with `SMALTI_AUTH=jwt`."""
    jwt_audience: str | None = None
    """Audience that tokens must be for, as their claim `aud` has it; needed with `SMALTI_AUTH=jwt`."""
    jwt_keys: str | None = None
    """File, or URL, of the issuer's public keys (JWKS); needed with `SMALTI_AUTH=jwt`. A file is read again when it
    changes, a URL every five minutes, and for an unknown key."""
    jwt_tenant: str = "tenant"
    """Claim of a token that names the tenant."""
    jwt_roles: str = "roles"
    """Claim of a token with its roles, a list or a text with spaces. A token without it may draw."""

    @field_validator("jwt_keys")
    @classmethod
    def _check_jwt_keys(cls, source: str | None) -> str | None:
        if source is not None and "://" in source:
            parts = urlsplit(source)
            if parts.scheme != "https" and not (
                parts.scheme == "http" and is_this_machine(parts.hostname or "")
            ):
                raise ValueError(f"{source!r} must be a file or an https URL: others could replace the keys")
        return source

    @model_validator(mode="after")
    def _check_defaults(self) -> Self:
        for default, maximum in (("default_time_limit", "time_limit"), ("default_retention", "retention")):
            if getattr(self, default) > getattr(self, maximum):
                names = [f"{GATEWAY_PREFIX}{name}".upper() for name in (default, maximum)]
                raise ValueError(f"{names[0]} must not be greater than {names[1]}; lower it")
        return self


def gateway_settings() -> GatewaySettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a value is invalid; names the variable.
    """
    return read_settings(GatewaySettings)

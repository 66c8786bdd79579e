"""Workers of two kinds, whose files differ although they do the same work."""

import urllib.request

from faults.layout import STAGES
from faults.matrix import Trial, row, sleeping
from harness.waiting import wait_until
from smalti.storage import digest

_PAUSED = sleeping("row 16", "decode.before-write", 3)


@row(
    "16",
    "two kinds of decoder write different bytes; one is paused in its work until the other's job has succeeded",
    "the job keeps its pictures, and each URL gives the bytes of its SHA-256",
    failpoints=(_PAUSED[0],),
    services=(*STAGES, "decoder-other"),
    held=("decoder-other",),
    modules={"decoder-other": "faults.other_decoder"},
)
def two_kinds_of_decoder(trial: Trial) -> None:
    """Stops a decoder while it works, lets one of the other kind do the work, and lets the first one go on."""
    system, account = trial.system, trial.account
    paused = account.submit(_PAUSED[1], candidates=4)
    system.wait_until_reached(_PAUSED[0])
    system.processes["decoder"].pause()
    try:
        system.release("decoder-other")
        trial.expect_states("succeeded", paused)
        check_files(trial, paused.job, "before the first decoder goes on")
    finally:
        system.processes["decoder"].resume()
    wait_until(lambda: any(job == paused.job for job, *_ in system.executions("decoder")), 60.0)
    check_files(trial, paused.job, "after the first decoder has gone on")
    # Both kinds work side by side.
    account.submit_many([f"row 16 {number}" for number in range(trial.jobs)], candidates=4)
    trial.expect_states("succeeded")
    kinds = {name: len(system.executions(name)) for name in ("decoder", "decoder-other")}
    trial.notes.append(f"chunks decoded by each kind: {kinds['decoder']} and {kinds['decoder-other']}")


def check_files(trial: Trial, job: str, when: str) -> None:
    """Checks that the pictures of a job download, and that their URLs give the files that they should."""
    with trial.system.client(attempts=4, retry_seconds=60) as client:
        pictures = client.get(job).pictures
        downloaded = list(client.download(job))
    trial.expect(
        len(downloaded) == len(pictures) > 0, f"{len(downloaded)} of {len(pictures)} download {when}"
    )
    for picture in pictures:
        with urllib.request.urlopen(picture.url, timeout=30) as response:
            trial.expect(
                digest(response.read()) == picture.sha256,
                f"the URL of picture {picture.candidate} gives another file {when}",
            )

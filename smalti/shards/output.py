"""The output of a shard: its tar, and the results of its prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smalti.batches import BatchPrompt, DrawnPicture, PictureFormat, PromptResult, TarWriter, webp_bytes
from smalti.shards.pictures import DrawnPrompt


@dataclass(frozen=True, kw_only=True)
class ShardOutput:
    """What has become of the prompts of a shard."""

    results: tuple[PromptResult, ...]
    """The results in the order of the prompts."""

    @property
    def drawn(self) -> int:
        """Number of prompts with pictures."""
        return sum(result.state == "drawn" for result in self.results)

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return sum(len(result.pictures) for result in self.results)

    def candidates(self, prompts: Sequence[BatchPrompt]) -> int:
        """Returns the number of candidates of the prompts that were drawn."""
        pairs = zip(prompts, self.results, strict=True)
        return sum(prompt.candidates for prompt, result in pairs if result.state == "drawn")


def write_output(
    drawn: Iterable[DrawnPrompt],
    path: Path,
    *,
    tar: str,
    picture_format: PictureFormat,
    model: str,
    revision: str,
) -> ShardOutput:
    """Writes the tar of a shard, and returns what has become of its prompts.

    Args:
        drawn: the prompts with the chosen pictures.
        path: the file to write; it has no members if no prompt has pictures.
        tar: its name in the output of the batch.
        picture_format: the format of the pictures.
        model: name of the model.
        revision: revision of the model.
    """
    results = []
    with TarWriter(path, picture_format, model=model, revision=revision) as writer:
        for each in drawn:
            prompt, reading = each.prompt, each.reading
            if reading.problem is not None:
                result = PromptResult.not_drawn(
                    prompt,
                    reading.problem,
                    model=model,
                    revision=revision,
                    effective_prompt=reading.effective_prompt,
                )
            else:
                records = writer.add(prompt, _pictures(each, picture_format), reading.effective_prompt)
                result = PromptResult.of_pictures(
                    prompt,
                    records,
                    tar=tar,
                    model=model,
                    revision=revision,
                    effective_prompt=reading.effective_prompt,
                )
            results.append(result)
    return ShardOutput(results=tuple(results))


def _pictures(drawn: DrawnPrompt, picture_format: PictureFormat) -> list[DrawnPicture]:
    found = []
    for picture in drawn.pictures:
        image = picture.image()
        found.append(
            DrawnPicture(
                content=picture.content if picture_format is PictureFormat.PNG else webp_bytes(image),
                candidate=picture.candidate,
                score=0.0 if picture.score is None else picture.score,
                width=image.width,
                height=image.height,
                wording=drawn.reading.wording(picture.candidate),
            )
        )
    return found

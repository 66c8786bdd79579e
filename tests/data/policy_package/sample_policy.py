"""An operator's policy, for tests: no hats, and no pictures of even candidates."""

from collections.abc import Sequence

from smalti.policy import PERMITTED, PicturesToCheck, PromptToCheck, Verdict


class SamplePolicy:
    """Refuses by word and by number."""

    def check_prompt(self, asked: PromptToCheck) -> Verdict:
        """Refuses hats; fails over a crash, and answers rubbish to rubbish."""
        if "crash" in asked.prompt:
            raise RuntimeError("out of order")
        if "rubbish" in asked.prompt:
            return None  # type: ignore[return-value]
        return Verdict(refused="hat" in asked.prompt.split(), message="no hats,\nplease")

    def check_pictures(self, asked: PicturesToCheck) -> Sequence[Verdict]:
        """Refuses even candidates."""
        return [
            Verdict(refused=True, message="even") if picture.candidate % 2 == 0 else PERMITTED
            for picture in asked.pictures
        ]


def broken() -> SamplePolicy:
    """Cannot be made."""
    raise RuntimeError("no model")

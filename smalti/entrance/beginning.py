"""What a program does before it imports anything large."""

from smalti.entrance import signals, streams, variables


def begin(name: str, *, status: int | None = None) -> None:
    """Prepares this process; the first call of every `__main__`.

    Args:
        name: the name with which its lines on standard error begin.
        status: the exit status after a signal before anything has begun; None for 128 and the signal's number.
    """
    streams.prepare()  # First, so that nothing else gets the number of a stream.
    signals.begin(name, status=status)
    variables.neutralise()

"""What can go wrong, as exceptions whose text is one line that a user can act on.

SmaltiError
├── InvalidInputError      a value given by the user: the field, what is wrong with it, the remedy
├── ModelError             a model folder, or one of its files, that cannot be used
│   ├── ConfigError        a configuration that asks for what the published models do not have
│   └── CheckpointError    a file of weights that is damaged, truncated or of another model
└── ModelNotFoundError     no model of that name
"""


class SmaltiError(Exception):
    """The base of every error that Smalti raises on purpose; its text is one line."""


class InvalidInputError(SmaltiError):
    """A value given by the user cannot be used; `field` is its name on the surface where it was given."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ModelError(SmaltiError):
    """A model folder, or a file in it, cannot be used."""


class ConfigError(ModelError):
    """A configuration asks for an option that the published models do not have."""


class CheckpointError(ModelError):
    """A file of weights is damaged, truncated, or does not fit its configuration."""


class ModelNotFoundError(SmaltiError):
    """No model has the name, and no folder has the path, that was asked for."""


class SmaltiWarning(UserWarning):
    """Something a user should know, though the work goes on; its text is one line."""

"""The errors a user of moaa_ray can meet; every message gives the value, the rule and the way out."""


class MoaaError(Exception):
    """Base of every error that is reported as one line, without a traceback."""

    exit_code = 1


class ConfigError(MoaaError):
    """The recipe, or what it names, cannot work; raised before any engine starts."""

    exit_code = 2


class DataError(MoaaError):
    """Input data that cannot be read as the recipe says."""

    exit_code = 3


class StageError(MoaaError):
    """A stage stopped, or ended without what the user asked for; what was finished is kept."""

    exit_code = 4


class FencedError(MoaaError):
    """Another driver owns this run directory now; this one must write nothing more."""

    exit_code = 5


class StoppedError(BaseException):
    """SIGINT or SIGTERM; no Exception, so that nothing on the way out takes it for an error of its own."""

    def __init__(self, number: int, what_now: str = "what is finished is kept, the same command goes on"):
        super().__init__(number)
        self.number = number
        self.what_now = what_now


def ours_within(error: BaseException) -> MoaaError | None:
    """The error of ours that another program's error wraps, as Ray's do; None: there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoaaError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    return None

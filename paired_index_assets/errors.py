"""What can go wrong, grouped by who can fix it. Every message names the file or value, what was expected, what was found and what to do."""


class PairedIndexError(Exception):
    """Anything this project raises on purpose. The command line prints it as one line and exits with 1."""


class Transient(PairedIndexError):
    """What may get better by itself: assets try again. Everything else is a mistake or damage, and stays until somebody acts."""


class BadInput(PairedIndexError, ValueError):
    """A file, array or setting handed in by the user cannot be used."""


class MissingInput(BadInput, FileNotFoundError):
    """A file that should be there is not."""

    def __str__(self) -> str:  # OSError's own __str__ would print the tuple of arguments
        return " ".join(str(a) for a in self.args)


class DamagedArtifact(PairedIndexError):
    """A file this project wrote is not what it should be: truncated, altered, or of another build."""


class Busy(Transient):
    """Another process is writing the same artifact."""


class SourceUnavailable(Transient):
    """A store or source does not answer, or no source has the file, after all retries."""


class OutOfDisk(PairedIndexError):
    """The disk, or the budget set for it, is full. Nothing that was finished is lost."""

"""What can go wrong, grouped by who can fix it. Every message names the file or value, what was expected, what was found and what to do."""

import errno


class PairedIndexError(Exception):
    """Anything this project raises on purpose. The command line prints it as one line and exits with 1."""


class Transient(PairedIndexError):
    """What may get better by itself: assets try again. Everything else is a mistake or damage, and stays until somebody acts."""


class BadInput(PairedIndexError, ValueError):
    """A file, array or setting handed in by the user cannot be used."""


class MissingExtra(PairedIndexError, ImportError):
    """A package that an extra brings is not installed."""


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


_CURES = {
    errno.EACCES: "make it readable and writable for this user, or choose another place",
    errno.EPERM: "make it readable and writable for this user, or choose another place",
    errno.EROFS: "the disk can only be read: choose another place",
    errno.ENOSPC: "free some space and start again, finished files are kept",
    errno.EDQUOT: "free some space and start again, finished files are kept",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a piece of the path is a file: check the path",
    errno.EISDIR: "expected a file: check the path",
    errno.EEXIST: "something else has that name: check the path",
    errno.ELOOP: "a link leads to itself: check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk cannot read or write it: check the disk",
}


def of_the_system(error: BaseException) -> PairedIndexError | None:
    """What the operating system refuses of a file, as an error of this project in one line; None for anything else."""
    if not isinstance(error, OSError) or error.errno not in _CURES:
        return None
    what = f"{error.filename}: " if error.filename is not None else ""
    kind = OutOfDisk if error.errno in (errno.ENOSPC, errno.EDQUOT) else BadInput
    return kind(f"{what}{(error.strerror or type(error).__name__).lower()}; {_CURES[error.errno]}")

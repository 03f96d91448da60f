"""The one exception of this package."""


class DataError(RuntimeError):
    """Something is wrong with the files of a data set.

    The message names the file and what is wrong with it. It is built from that message alone, so that a
    ``DataLoader`` can raise it again, as itself, in the process that reads from its workers.
    """

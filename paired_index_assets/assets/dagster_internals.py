"""What Dagster has no public way to tell. The only module that imports its private ones: what moves there is mended here."""

import dagster as dg


def keeps_records_on_this_machine(instance: dg.DagsterInstance) -> bool:
    """Whether runs are recorded in SQLite files. No public attribute names the storage's kind."""
    from dagster._core.storage.runs import SqliteRunStorage  # brings SQLAlchemy: not at import

    return isinstance(instance.run_storage, SqliteRunStorage)

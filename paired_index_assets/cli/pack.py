"""`paired-index pack`: the shards that are served as one file, for the machine that searches."""

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, say
from paired_index_assets.settings import Settings


@takes_settings()
def pack(settings: Settings) -> None:
    """Lay all shards out as one file, list by list, which searches faster; searches use it as long as it is of the same shards.

    It is as large as the shards, and made again (without what was taken down meanwhile) where anything has changed.
    """
    from paired_index_assets.search.packed import pack as pack_shards

    with bars() as progress:
        record, made = pack_shards(settings.build_root, progress=progress)
    each = record.bytes / max(1, record.rows)
    say(
        f"{'packed' if made else 'packed already'}: {record.rows:,} vectors of {len(record.shards)} shards in {record.bytes:,} bytes "
        f"({each:.1f} a vector), {record.file}"
    )

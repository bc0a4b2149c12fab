"""Files that land beyond the catalog: each is appended to the last shard once it is quiet, so that no earlier id moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from upath import UPath

from paired_index_assets.errors import BadInput
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import Listing, version_of


@dataclass(frozen=True)
class Appended:
    """The catalog with the files `added`; `unknown` is what the next look is to be given; `refused` says why of each unusable file."""

    catalog: Catalog
    added: list[str]
    unknown: dict[str, str]
    refused: dict[str, str]


def append_quiet(catalog: Catalog, folder: UPath, listing: Listing, unknown: Mapping[str, str]) -> Appended:
    """Append the ``.npy`` files of `listing`, which is that of `folder`, that `catalog` does not name and that did not change.

    `unknown`: name -> version of such files at the last look, {} at the first. No catalog says how long these files are to be, so one
    that is still being written is recognised by its changing; one that is quiet but no matrix of the catalog's width is refused until it changes.
    """
    versions = {name: version_of([file]) for name, file in listing.items() if name.endswith(".npy") and name not in catalog.by_name}
    quiet = {name for name, version in versions.items() if unknown.get(name) == version}
    refused = _refused(catalog, folder, quiet)
    added = sorted(quiet - refused.keys())
    extended = catalog.extend(folder, names=added) if added else catalog
    return Appended(extended, added, {name: version for name, version in versions.items() if name not in added}, refused)


def _refused(catalog: Catalog, folder: UPath, names: set[str]) -> dict[str, str]:
    """Why of each file that cannot be appended; one look at the folder where all can."""
    refused = {}
    try:
        if names:
            catalog.extend(folder, names=names)
    except BadInput:
        for name in sorted(names):
            try:
                catalog.extend(folder, names={name})
            except BadInput as error:
                refused[name] = str(error)
    return refused

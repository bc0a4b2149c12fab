"""An asset of a build and a check of one, as plain functions with the settings they use: made Dagster's by the code location.

The settings of a code location are the defaults of what its assets are asked for, so assets are defined when those are known.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from paired_index_assets.assets.facts import failing_in_one_line
from paired_index_assets.assets.resources import BuildResource, ProgressLog, config_of
from paired_index_assets.progress import Progress
from paired_index_assets.settings import Settings

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild

Made = dg.MaterializeResult | dg.AssetCheckResult  # the latter of a run that recorded what it made
Make = Callable[[dg.AssetExecutionContext, "OpenBuild", Progress], Made]
Judge = Callable[["OpenBuild"], dg.AssetCheckResult]


@dataclass(frozen=True, eq=False)
class BuiltAsset:
    """`make` and what Dagster is told of it; `takes`: the settings that a run of it may change, which its launchpad shows."""

    make: Make
    takes: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey(self.name)

    def definition(self, settings: Settings, **more: Any) -> dg.AssetsDefinition:
        """Dagster's, with the defaults of `settings`; `more` as `options`."""
        Fields = config_of(self.name, settings, self.takes)

        @failing_in_one_line()
        def made(
            context: dg.AssetExecutionContext,
            config: Fields,  # type: ignore[valid-type]  # made at run time
            build: BuildResource,
            progress: dg.ResourceParam[ProgressLog],
        ) -> dg.MaterializeResult:  # Dagster reads this, and knows no union
            return self.make(context, build.open(config), progress.of(context))  # type: ignore[return-value]

        told: dict[str, Any] = {"key": self.key, "description": inspect.getdoc(self.make), **self.options, **more}
        defined: dg.AssetsDefinition = dg.asset(**told)(made)
        return defined


@dataclass(frozen=True, eq=False)
class BuiltCheck:
    """`judge` of an asset, and what Dagster is told of it; `takes` as of `BuiltAsset`."""

    judge: Judge
    takes: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.judge.__name__

    def definition(self, settings: Settings) -> dg.AssetChecksDefinition:
        """Dagster's, with the defaults of `settings`."""
        Fields = config_of(self.name, settings, self.takes)

        @dg.asset_check(name=self.name, description=inspect.getdoc(self.judge), **self.options)
        @failing_in_one_line()
        def judged(config: Fields, build: BuildResource) -> dg.AssetCheckResult:  # type: ignore[valid-type]  # made at run time
            return self.judge(build.open(config))

        return judged


def built_asset(*takes: str, **options: Any) -> Callable[[Make], BuiltAsset]:
    return lambda make: BuiltAsset(make, takes, options)


def built_check(*takes: str, **options: Any) -> Callable[[Judge], BuiltCheck]:
    return lambda judge: BuiltCheck(judge, takes, options)


Kind = TypeVar("Kind", BuiltAsset, BuiltCheck)


def found_in(modules: Iterable[ModuleType], kind: type[Kind]) -> list[Kind]:
    """All of a kind that these modules define, in their order; what is imported from another is there once."""
    return list({id(one): one for module in modules for one in vars(module).values() if isinstance(one, kind)}.values())

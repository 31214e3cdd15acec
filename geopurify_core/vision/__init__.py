"""2D vision-language backbones: ``load_backbone("segmenter", config="my_model.yaml")``.

Names are looked up in the small table below first, then among installed packages that offer the entry-point group
``geopurify.backbones`` (a class or factory taking keyword options), so that a third party can add its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from geopurify_core.errors import BackboneError, GeoPurifyError
from geopurify_core.vision.base import FeatureMap, SemanticBackbone
from geopurify_core.vision.shipped import with_shipped_config

__all__ = ["FeatureMap", "SemanticBackbone", "backbone_names", "load_backbone"]

ENTRY_POINT_GROUP = "geopurify.backbones"
# Imported only when asked for: a backbone may need a runtime that the user of another one does not have.
_BUILT_IN = {
    "nano": "geopurify_core.vision.nano:NanoBackbone",
    "segmenter": "geopurify_core.vision.segmenter:SegmenterBackbone",
    "detector": "geopurify_core.vision.detector:DetectorBackbone",
    "composite": "geopurify_core.vision.composite:CompositeBackbone",
    "xdecoder": "geopurify_core.vision.xdecoder.backbone:XDecoderBackbone",
}


def backbone_names() -> list[str]:
    """Every name ``load_backbone`` knows, built-in first."""
    return [*_BUILT_IN, *sorted(point.name for point in _entry_points() if point.name not in _BUILT_IN)]


def load_backbone(name: str, **options: Any) -> SemanticBackbone:
    """A ready backbone.

    Args:
        name: ``nano``, ``segmenter``, ``detector``, ``composite``, ``xdecoder``, or one that an installed package
            offers.
        **options: Keyword options of that backbone (``docs/backbones.md`` lists them). Where they name neither a
            YAML nor a model, the one in ``config/backbones`` is used.

    Raises:
        BackboneError: The name or an option is unknown, a library is missing, or the model cannot be loaded.
        InvalidConfigError: The backbone's own configuration file has an unknown key or a bad value.
    """
    factory = backbone_factory(name)
    options = with_shipped_config(name, options)
    _check_options(name, factory, options)
    try:
        backbone = factory(**options)
    except GeoPurifyError:
        raise
    except ImportError as error:
        raise BackboneError(
            f"backbone {name}", error.name, f"Install the missing library: pip install {error.name}"
        ) from error
    except Exception as error:
        raise BackboneError(
            f"backbone {name}", options, f"It failed to load: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(backbone, SemanticBackbone):
        raise BackboneError(
            f"backbone {name}", type(backbone).__name__, "It does not offer the SemanticBackbone interface."
        )
    return backbone


def backbone_factory(name: str) -> Callable[..., Any]:
    """The class or function behind a name. Raises BackboneError for an unknown one."""
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        try:
            return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            raise BackboneError("backbone", name, f"It is not part of this installation ({error}).") from error
    for point in _entry_points():
        if point.name == name:
            try:
                return point.load()  # type: ignore[no-any-return]
            except Exception as error:
                raise BackboneError(
                    "backbone", name, f"Its package {point.value} cannot be imported: {error}"
                ) from error
    raise BackboneError("backbone", name, f"Known backbones: {', '.join(backbone_names())}.")


def _entry_points() -> list[metadata.EntryPoint]:
    return list(metadata.entry_points(group=ENTRY_POINT_GROUP))


def _check_options(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some compiled callables tell nothing about themselves
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option, value in options.items():
        if option not in parameters:
            raise BackboneError(
                f"backbone {name} option {option}",
                value,
                f"Options of this backbone: {', '.join(parameters) or 'none'}.",
            )

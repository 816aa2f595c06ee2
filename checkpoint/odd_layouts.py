"""Refuses, by name, folders whose layout is of another kind than a model of transformers.

Owns the signs of each kind and the way out of it. Knows them by file names alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from checkpoint.folder import CONFIG
from configs.errors import ShardIndexError

_ADAPTER = "adapter_config.json"
_PIPELINE = "model_index.json"
_PARTS = ("unet", "vae", "scheduler", "text_encoder", "transformer")
_MISTRAL = "params.json"
_OF_IMAGES = frozenset(
    [
        *("beit", "bit", "clip", "clip_vision_model", "convnext", "convnextv2", "deit", "detr"),
        *("dinov2", "dinov3_vit", "dpt", "efficientnet", "mobilenet_v2", "mobilevit", "resnet"),
        *("sam", "segformer", "siglip", "siglip2", "siglip_vision_model", "swin", "swinv2"),
        *("vit", "vit_mae", "yolos"),
    ]
)
_FOR_IMAGES = ("ForImageClassification", "ForObjectDetection", "ForDepthEstimation")


def refuse_odd_layout(folder: str | Path, names: Collection[str]) -> None:
    """Refuse a folder that holds something else than one model in transformers' layout.

    Args:
        folder: Its path, or a repository's name, for the message.
        names: Its files and folders.

    Raises:
        ShardIndexError: Naming the layout, and what can be done.
    """
    if _PIPELINE in names or ("unet" in names and CONFIG not in names):
        what = (
            f"holds a diffusion pipeline ({_first(names, (_PIPELINE, *_PARTS))}), no language model"
        )
        raise ShardIndexError(folder, what, "give the folder of a language model")
    if _ADAPTER in names or any(name.startswith("adapter_model.") for name in names):
        what = f"holds an adapter alone ({_first(names, (_ADAPTER, 'adapter_model'))}), not a model"
        mend = "fuse it into its base model: convert that with --fuse-adapter"
        raise ShardIndexError(folder, what, mend)
    consolidated = sorted(name for name in names if name.startswith("consolidated"))
    if consolidated:
        whose = "Mistral's or Meta's own" if _MISTRAL in names else "its maker's own"
        what = f"holds weights only in {whose} layout ({consolidated[0]})"
        mend = "use the same model in transformers' layout, or convert it with transformers first"
        raise ShardIndexError(folder, what, mend)


def not_of_text(config: Mapping[str, object]) -> str | None:
    """What a model is that has no text part, by its config; None if it may have one."""
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    if config.get("model_type") in _OF_IMAGES or any(
        isinstance(name, str) and name.endswith(_FOR_IMAGES) for name in listed
    ):
        return "a model of images alone, no language model"
    return None


def _first(names: Collection[str], wanted: Collection[str]) -> str:
    return next(name for want in wanted for name in sorted(names) if name.startswith(want))

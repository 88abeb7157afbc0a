"""Models that are saved beside their vocabulary and know which tokenizer made the codes that they were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from ..data.files import atomic_folder
from ..tokenizers.base import VisualTokenizer
from ..tokenizers.codes import CodeSpec
from .adapters import has_adapters, merged_state
from .vocabulary import Vocabulary, missing_files


class SavedModel(PreTrainedModel):
    """A model in one folder with its vocabulary; loading is strict.

    A subclass is made from ``(config, vocabulary)``; its configuration has ``spec``, a :class:`CodeSpec` as a dict, and
    ``tokenizer_fingerprint``.
    """

    spec: CodeSpec  #: of the codes that it reads and writes
    vocabulary: Vocabulary

    def check_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise unless this model was trained with ``tokenizer``.

        Raises:
            ValueError: another fingerprint; the sentence names both.
        """
        expected, found = self.config.tokenizer_fingerprint, tokenizer.fingerprint()
        if not expected:
            raise ValueError(
                f"this language model does not say which tokenizer made its codes ({_describe(self.spec)}), got "
                f"tokenizer {found} ({_describe(tokenizer.spec)}); import it again with --tokenizer and that folder"
            )
        if expected != found:
            raise ValueError(
                f"this language model was trained with tokenizer {expected} ({_describe(self.spec)}), got tokenizer "
                f"{found} ({_describe(tokenizer.spec)}); load the tokenizer it was trained with or train it again"
            )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: what is used of it
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        **kwargs: Any,
    ) -> None:
        """Write weights, configuration and vocabulary to a folder, whole or not at all.

        Adapters are written as part of the weights that they stand beside, and stay as they are in this model.

        Args:
            save_directory: the folder; what it held is replaced.
            is_main_process: of several that call this, the one that writes.
            state_dict: weights to write in place of the model's own.
            push_to_hub: not here; see ``push_to_hub`` of this class.
            max_shard_size: of a file of weights, in bytes or as ``5GB``.
            kwargs: the other arguments of ``transformers``.

        Raises:
            ValueError: ``push_to_hub``.
        """
        if push_to_hub:
            raise ValueError("save_pretrained writes a folder alone, got push_to_hub; call push_to_hub(repo_id)")
        if not is_main_process:
            return
        state = merged_state(self) if state_dict is None and has_adapters(self) else state_dict
        with atomic_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size, **kwargs)
            self.vocabulary.save_pretrained(folder)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: no name, nothing to load
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a model from a local folder, strictly, in float32 unless ``dtype`` says otherwise.

        Raises:
            FileNotFoundError: no folder, or a file of it is missing.
            ValueError: weights that are damaged or do not match the configuration key by key.
        """
        folder = Path(pretrained_model_name_or_path)
        _check_folder(folder)
        options: dict[str, Any] = {
            "dtype": torch.float32,
            **kwargs,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
            "use_safetensors": True,
        }  # reported
        options["vocabulary"] = Vocabulary.from_pretrained(str(folder))
        try:
            loaded: Any = super().from_pretrained(folder, **options)
        except (OSError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(f"{folder} does not hold a readable language model ({reason}); save it again") from error
        model, report = loaded
        if differing := _differences(report, model.config):
            raise ValueError(f"weights in {folder} must match its configuration key by key, got {differing}")
        return model.eval()


def _differences(report: Mapping[str, Any], config: Any) -> str:
    """What was found otherwise than expected when weights were loaded; empty where all is well."""
    found, parts = list[str](), set[str]()
    for kind, items in report.items():
        keys = sorted(item if isinstance(item, str) else str(item[0]) for item in items)
        parts |= {key.partition(".")[0] for key in keys}
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            found.append(f"{kind} {', '.join(keys[:3])}{more}")
    if "head" in parts and hasattr(config, "head"):
        found.append(f"while its config.json says head {config.head}, which must be the one it was trained with")
    return ", ".join(found)


def _check_folder(folder: Path) -> None:
    missing = [name for name in ("config.json", *_weight_files(folder)) if not (folder / name).is_file()]
    missing += missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"{folder} should hold a language model but lacks {', '.join(missing)}; save or train it again"
        )


def _weight_files(folder: Path) -> list[str]:
    """One file, or as many as its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} does not hold a readable language model ({index.name} is damaged); save it again"
        ) from error


def _describe(spec: CodeSpec) -> str:
    books = ", ".join(f"{book.name} {book.size}x{book.depth}" for book in spec.codebooks)
    return f"{spec.layout.kind} {'x'.join(map(str, spec.layout.shape))}: {books}"

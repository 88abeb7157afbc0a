"""What every test gets: no network, one seed, one thread; and recipes small enough to be run by a test."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face library is imported

import pytest
import torch
import yaml

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


#: The largest number that a shrunk recipe keeps under each of these names, wherever it stands.
CAPS = {
    "max_steps": 3,
    "val_check_interval": 2,
    "count": 24,
    "pictures": 8,
    "training_pictures": 8,
    "per_prompt": 1,
    "batch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def capped(value: Any, caps: dict[str, int]) -> Any:
    """``value`` with every number under a name of ``caps`` at most that large."""
    if isinstance(value, list):
        return [capped(item, caps) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: min(item, caps[name]) if name in caps and isinstance(item, int) else capped(item, caps)
        for name, item in value.items()
    }


def drawn(value: Any, size: int) -> Any:
    """``value`` with pictures of the embedded world in place of files, which tests do not have."""
    if isinstance(value, list):
        return [drawn(item, size) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_path") in ("ImageFolder", "WebDataset", "CaptionTable", "HubDataset", "ArrowFiles"):
        return {"class_path": "Scenes", "init_args": {"count": 600, "size": size}}
    return {name: drawn(item, size) for name, item in value.items()}


@pytest.fixture(scope="session")
def shrunk() -> Callable[[Path], dict[str, Any]]:
    """Read a recipe, or a comparison, with all its stages in a size that runs in seconds."""

    def read(path: Path) -> dict[str, Any]:
        recipe = yaml.safe_load(path.read_text())
        if "compare" in recipe:
            recipe = drawn(recipe, recipe["compare"]["size"])
        words = CAPS | {"count": 600}  # few pictures do not show every word
        for stage in recipe.get("stages", recipe.get("before")).values():
            stage["with"] = capped(stage["with"], words if stage["run"] == "vocabulary" else CAPS)
        shared = {name: capped(recipe[name], CAPS) for name in ("training", "families") if name in recipe}
        return recipe | shared | ({"compare": capped(recipe["compare"], CAPS | {"count": 60})} if shared else {})

    return read

"""``smalti fit``, ``validate``, ``test`` and ``predict``: Lightning's command line over smalti's classes."""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

from ..training.interrupt import GracefulInterrupt
from ..training.progress import ProgressLines
from .diagnose import explain, is_parser_error
from .errors import InterruptedRunError, UsageError

#: Packages whose classes a configuration may name by their short name.
_VOCABULARY = ("tokenizers", "data", "lm", "training")

#: The trainer's defaults where they differ from Lightning's.
_DEFAULTS = {
    "default_root_dir": "runs",
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}


#: Errors are explained here, not printed by the parser.
_RAISE: dict[str, Any] = {"exit_on_error": False}


class SmaltiCLI(LightningCLI):
    """Lightning's command line with one folder per run.

    ``trainer.default_root_dir`` holds ``last.ckpt`` and ``logs/version_<n>/`` with ``metrics.csv`` and the resolved
    ``config.yaml`` of every attempt. ``--ckpt_path last`` continues from that ``last.ckpt``.
    """

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=dict(_DEFAULTS),
            seed_everything_default=0,
            parser_kwargs={name: dict(_RAISE) for name in self.subcommands()} | _RAISE,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer with a CSV logger, ``last.ckpt`` and visible progress, unless the configuration has its own."""
        chosen = self._get(self.config_init, "trainer", default={})
        callbacks: list[Callback] = list(chosen.get("callbacks") or [])
        if chosen.get("enable_checkpointing") is not False and not _has(callbacks, GracefulInterrupt):
            callbacks.append(GracefulInterrupt())
        if chosen.get("enable_progress_bar") is not False and not _has(callbacks, RichProgressBar, ProgressLines):
            callbacks.append(RichProgressBar(leave=True) if sys.stderr.isatty() else ProgressLines())
        if chosen.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(chosen["default_root_dir"], name="logs")
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train; see ``Trainer.fit``.

        Raises:
            InterruptedRunError: Ctrl-C ended the run.
            FileNotFoundError: ``--ckpt_path last`` where nothing has been saved yet.
        """
        interrupt = next((c for c in self._callbacks() if isinstance(c, GracefulInterrupt)), None)
        if ckpt_path == "last" and interrupt is not None:
            path = interrupt.checkpoint_path(self.trainer)
            if not path.is_file():
                raise FileNotFoundError(f"--ckpt_path last continues from {path}, which does not exist; leave it out")
            ckpt_path = str(path)
        try:
            self.trainer.fit(ckpt_path=ckpt_path, **kwargs)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            if not self.trainer.interrupted:
                raise
            saved = interrupt is not None and interrupt.interrupted
            how = "; the same command with --ckpt_path last continues" if saved else ""
            raise InterruptedRunError(f"interrupted at step {self.trainer.global_step}{how}") from error

    def _callbacks(self) -> list[Callback]:
        found: Any = self.trainer
        return found.callbacks


def run_lightning(arguments: list[str]) -> int:
    """Run one of Lightning's sub-commands.

    Args:
        arguments: its name and what follows.

    Raises:
        UsageError: wrong arguments or a wrong configuration.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 beside torch 2.13
    import_vocabulary()
    previous = sys.argv
    sys.argv = previous[:1]  # Lightning warns of arguments given twice
    try:
        SmaltiCLI(arguments)
    except (ArgumentError, ValueError, TypeError) as error:
        if not is_parser_error(error):
            raise
        raise UsageError(explain(error)) from error
    finally:
        sys.argv = previous
    return 0


def import_vocabulary() -> None:
    """Import all modules that define classes for configurations, so that short names are found."""
    root = Path(__file__).resolve().parent.parent
    package = (__package__ or "smalti.cli").rpartition(".")[0]
    for folder in _VOCABULARY:
        for file in sorted((root / folder).glob("*.py")):
            if file.stem != "__init__":
                import_module(f"{package}.{folder}.{file.stem}")


def _has(callbacks: list[Callback], *kinds: type[Callback]) -> bool:
    return any(isinstance(callback, kinds) for callback in callbacks)

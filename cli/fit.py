"""``smalti fit``, ``validate``, ``test`` and ``predict``: Lightning's command line over smalti's classes."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

from ..training.base import TrainingModule
from ..training.interrupt import GracefulInterrupt
from ..training.progress import ProgressLines
from .diagnose import explain, is_parser_error
from .errors import InterruptedRunError, UsageError
from .models import quiet

#: Packages whose classes a configuration may name by their short name.
_VOCABULARY = ("tokenizers", "data", "lm", "training")

#: The trainer's defaults where they differ from Lightning's.
_DEFAULTS = {
    "default_root_dir": "runs",
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}


#: Warnings that ask nothing of the user: of Lightning 2.6 beside torch 2.13, of short epochs, of no validation data.
_NOISE = (".*LeafSpec.*", ".*smaller than the logging interval.*", ".*Total length of `list`.*")

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

    def before_fit(self) -> None:
        """Try what a run would fail at later, before it writes anything."""
        if isinstance(self.model, TrainingModule):
            self.model.check_run(self.trainer, self.datamodule)

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


class ConfigurationCheck(SmaltiCLI):
    """Parses a configuration and builds nothing."""

    def instantiate_classes(self) -> None:
        """Leave it at the parsing, and run no sub-command."""
        self.subcommand = None


def check_configuration(command: str, configuration: dict[str, Any]) -> None:
    """Check a configuration without building what it describes or writing anything.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        configuration: what its YAML file would hold; files that it names need not exist.

    Raises:
        UsageError: an unknown class or option, or a value of another type; the nearest known name is in the sentence.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "configuration.yaml"
        file.write_text(yaml.safe_dump(configuration))
        _run(ConfigurationCheck, [command, "-c", str(file)])


def run_lightning(arguments: list[str]) -> int:
    """Run one of Lightning's sub-commands.

    Args:
        arguments: its name and what follows.

    Raises:
        UsageError: wrong arguments or a wrong configuration.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet()
    _run(SmaltiCLI, arguments)
    return 0


def _run(kind: type[SmaltiCLI], arguments: list[str]) -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    import_vocabulary()
    previous = sys.argv
    sys.argv = previous[:1]  # Lightning warns of arguments given twice
    try:
        kind(arguments)
    except (ArgumentError, ValueError, TypeError) as error:
        if not is_parser_error(error):
            raise
        raise UsageError(explain(error)) from error
    finally:
        sys.argv = previous


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

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

from ..data.leftovers import recovered
from ..data.processes import LostProcessError
from ..training.base import TrainingModule
from ..training.checkpoint_files import check_checkpoint
from ..training.interrupt import GracefulInterrupt, check_parts
from ..training.progress import ProgressLines
from ..training.recipe import read_yaml
from ..training.resume import ResumableData
from ..training.waiting import Waiting
from .class_paths import limit_class_paths
from .diagnose import explain, is_parser_error
from .errors import INTERRUPTED, InterruptedRunError, UsageError
from .lost import lost, watching
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
_NOISE = (
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*Total length of `list`.*",
    ".*overrides the configure_model callback.*",  # averages beside sharded weights are refused in a sentence
)

#: What stands for a checkpoint of a run.
_NAMED = ("last", "best", "hpc", "registry")

#: What follows where ``last.ckpt`` has been saved.
_CONTINUES = "the same command with --ckpt_path last continues"

#: Errors are explained here, not printed by the parser.
_RAISE: dict[str, Any] = {"exit_on_error": False}


class SmaltiCLI(LightningCLI):
    """Lightning's command line with one folder per run.

    ``trainer.default_root_dir`` holds ``last.ckpt`` and ``logs/version_<n>/`` with ``metrics.csv`` and the resolved
    ``config.yaml`` of every attempt. ``--ckpt_path last`` continues from that ``last.ckpt``.
    """

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
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
        if not _has(callbacks, Waiting):
            callbacks.append(Waiting())
        if chosen.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(chosen["default_root_dir"], name="logs")
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Arguments of Lightning's methods that no configuration sets: checkpoints are never opened as code."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if path := arguments.get("ckpt_path"):
            _check_checkpoint(str(path))
        return {**arguments, "weights_only": True}

    def before_fit(self) -> None:
        """Try what a run would fail at later, before it writes anything."""
        if isinstance(self.model, TrainingModule):
            self.model.check_run(self.trainer, self.datamodule)
        if isinstance(self.datamodule, ResumableData):
            self.datamodule.check_order(self.trainer.world_size)

    def before_validate(self) -> None:
        """Raise where there is nothing to measure on."""
        if isinstance(self.datamodule, ResumableData) and self.datamodule.validation_set() is None:
            raise UsageError("smalti validate needs data to validate on, got none; give data.init_args.validation")

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train; see ``Trainer.fit``.

        Raises:
            InterruptedRunError: Ctrl-C ended the run; of several processes the first says so.
            LostProcessError: another process of the run ended.
            FileNotFoundError: ``--ckpt_path last`` where nothing has been saved yet.
            ValueError: a checkpoint of sharded weights for whole ones, or the other way round.
        """
        interrupt = next((c for c in self._callbacks() if isinstance(c, GracefulInterrupt)), None)
        if ckpt_path == "last" and interrupt is not None:
            path = interrupt.checkpoint_path(self.trainer)
            if not recovered(path).exists():
                raise FileNotFoundError(f"--ckpt_path last continues from {path}, which does not exist; leave it out")
            check_checkpoint(path)
            ckpt_path = str(path)
        if ckpt_path is not None and Path(ckpt_path).exists():
            check_parts(Path(ckpt_path), self.trainer)
        sys.argv = [sys.argv[0], *self._arguments]  # where there are several devices, Lightning starts this again
        try:
            with watching(lambda: _lost_sentence(interrupt)):
                self.trainer.fit(ckpt_path=ckpt_path, **kwargs)
        except RuntimeError as error:
            if self.trainer.world_size == 1 or not lost(error):
                raise
            raise LostProcessError(_lost_sentence(interrupt)) from error
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            if not self.trainer.interrupted:
                raise
            if not self.trainer.is_global_zero:
                sys.exit(INTERRUPTED)
            saved = interrupt is not None and interrupt.interrupted
            how = f"; {_CONTINUES}" if saved else ""
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
    _check_files(arguments)
    _run(SmaltiCLI, arguments)
    return 0


def _check_files(arguments: list[str]) -> None:
    """Raise where a configuration is no YAML, says something twice, of which the parser would take the last, or a
    checkpoint could run code."""
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, rest = argument.partition("=")
        file = Path(rest if equals else value)
        if name in ("-c", "--config") and file.is_file() and not isinstance(read := read_yaml(file), dict):
            raise UsageError(f"{file} must be a mapping of options, got a {type(read).__name__}; correct the file")
        if name == "--ckpt_path":
            _check_checkpoint(str(file))


def _check_checkpoint(given: str) -> None:
    """Raise where a checkpoint is missing, damaged or could run code; names of Lightning's stand for none yet."""
    if given not in _NAMED and "://" not in given and not Path(given).exists():
        raise FileNotFoundError(f"--ckpt_path must be a checkpoint, got {given}, which does not exist; check the path")
    check_checkpoint(given)


def _run(kind: type[SmaltiCLI], arguments: list[str]) -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    import_vocabulary()
    limit_class_paths()
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


def _lost_sentence(interrupt: GracefulInterrupt | None) -> str:
    step = None if interrupt is None else interrupt.saved_step
    return "another process of this run ended" + ("" if step is None else f"; {_CONTINUES} from step {step}")


def _has(callbacks: list[Callback], *kinds: type[Callback]) -> bool:
    return any(isinstance(callback, kinds) for callback in callbacks)

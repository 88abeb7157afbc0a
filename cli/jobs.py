"""What ``smalti sample`` draws: pairs of prompt and seed in batches, by one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .progress import Bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.processes import Processes
    from ..generation.orders import Order
    from ..generation.pictures import PicturePipeline
    from ..generation.sampler import Progress, Watch
    from .drawing import Drawing


@dataclass(frozen=True)
class Jobs:
    """One picture for every pair of prompt and seed."""

    pipeline: PicturePipeline
    pairs: Sequence[tuple[str, int]]  #: of prompt and seed
    sampling: Any  #: how the model draws
    batch: int  #: drawn together; in a batch of one, the bytes of a picture depend on nothing but its own pair
    order: Order | None = None  #: of a language model; None for its own
    watch: Watch | None = None  #: called after every pass of a language model

    def pictures(self, processes: Processes) -> list[Image]:
        """All of them, in each process."""
        import numpy as np
        import torch
        from PIL import Image

        parts = self._batches()
        with Bar("drawing", len(self.pairs)) as bar:

            def draw(at: int) -> Any:
                found = self._draw(parts[at], bar, at, len(parts))
                return torch.from_numpy(np.stack([np.asarray(picture) for picture in found]))

            drawn = [each for batch in processes.shared(range(len(parts)), draw) for each in batch]
        return [Image.fromarray(levels.numpy()) for levels in drawn]

    def draw_into(self, drawing: Drawing, scale: int, processes: Processes) -> None:
        """Draw what is missing in a folder; a batch of which a picture is missing is drawn whole.

        Args:
            drawing: as many pictures as pairs.
            scale: enlargement by repeating pixels.
            processes: share the batches, on one disk.

        Raises:
            DiskFullError: no space left.
        """
        from .outputs import enlarged

        there: set[int] = set() if self.watch is not None else drawing.drawn()
        parts: list[range] = [part for part in self._batches() if not there.issuperset(part)]
        parts = [range(*ends) for ends in processes.gathered([(part.start, part.stop) for part in parts])[0]]
        with Bar("drawing", len(self.pairs)) as bar:

            def draw(at: int) -> None:
                for index, picture in zip(parts[at], self._draw(parts[at], bar, at, len(parts)), strict=True):
                    drawing.save(index, enlarged(picture, scale))

            for _ in processes.shared(range(len(parts)), draw):
                pass

    def _batches(self) -> list[range]:
        count = len(self.pairs)
        return [range(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]

    def _draw(self, part: range, bar: Bar, before: int, total: int) -> list[Image]:
        """One batch, after ``before`` of ``total`` batches."""
        import torch

        from ..generation.pipeline import TextToImagePipeline

        generators = [torch.Generator().manual_seed(self.pairs[index][1]) for index in part]
        wanted = [self.pairs[index][0] for index in part]

        def tell(progress: Progress) -> None:
            bar.update(before * progress.total + progress.done, total * progress.total)
            if self.watch is not None:
                self.watch(progress)

        if isinstance(self.pipeline, TextToImagePipeline):
            return self.pipeline(wanted, generators, self.sampling, self.batch, tell, self.order)
        pictures = self.pipeline(wanted, generators, self.sampling, self.batch, progress=False)
        bar.update(before + 1, total)
        return pictures

"""The image sources, and the error they raise: `from smalti.data.sources import ImageFolder`.

All but the embedded world keep their index, or their rows, in a `datasets.Dataset`: compact Arrow memory that forked
workers share and spawned workers receive. Pictures stay encoded until `ImageSource.picture` decodes them. Local files
are never copied, except parquet, which cannot be read by row: `datasets` converts it once into its cache
(`HF_DATASETS_CACHE`, or the `cache_dir` argument).
"""

from .arrow import ArrowFiles, HubDataset
from .base import ImageSource, Part
from .decoding import BrokenImageError
from .folder import ImageFolder
from .tables import CaptionTable
from .webdataset import WebDataset

__all__ = [
    "ArrowFiles",
    "BrokenImageError",
    "CaptionTable",
    "HubDataset",
    "ImageFolder",
    "ImageSource",
    "Part",
    "WebDataset",
]

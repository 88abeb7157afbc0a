"""What is known about pictures, and the tokenizer that codes them."""

from __future__ import annotations

import pytest

from smalti.training.encode import saved_tokenizer


def test_a_missing_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="a tokenizer was expected in"):
        saved_tokenizer(str(tmp_path / "none"))

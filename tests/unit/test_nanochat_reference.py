"""The numpy reference of nanochat, held against what nanochat itself computed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.factories_nanochat import REFERENCES, SHARED, read_reference
from tests.nanochat_reference import ERAS, logits


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/nanochat is not here")
@pytest.mark.parametrize(("name", "era"), REFERENCES.items())
def test_reference_computes_what_nanochat_does(name: str, era: str) -> None:
    weights, sizes, told = read_reference(name)

    found = logits(weights, sizes, ERAS[era], told["ids"])

    assert np.abs(found - told["logits"]).max() < 2e-5


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/nanochat is not here")
@pytest.mark.parametrize(("name", "era"), REFERENCES.items())
def test_reference_goes_on_as_nanochat_does(name: str, era: str) -> None:
    weights, sizes, told = read_reference(name)
    ids = told["ids"][:40]

    for expected in told["greedy"][:6]:
        ids.append(int(logits(weights, sizes, ERAS[era], ids)[-1].argmax()))
        assert ids[-1] == expected

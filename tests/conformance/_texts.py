"""A datastore over the small vocabulary of the suites."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from pronghorn.datastore.build import write
from tests.conformance._rig import N_VOCAB
from tests.engines import byte_tokenizer


@cache
def store() -> str:
    """What greedy bigram models of a few seeds write after each token, and tokens by lot."""
    folder = Path(tempfile.mkdtemp(prefix="pronghorn-datastore-"))
    atexit.register(shutil.rmtree, folder, True)
    texts = [np.random.default_rng(9).integers(0, N_VOCAB, 4000).tolist()]
    for seed in range(12):
        after = np.random.default_rng(seed).standard_normal((N_VOCAB, N_VOCAB)).argmax(1)
        for token in range(N_VOCAB):
            text = [token]
            while len(text) < 40:
                text.append(int(after[text[-1]]))
            texts.append(text)
    tokens = np.concatenate([[*text, 0xFFFF] for text in texts]).astype(np.uint16)
    write(folder / "texts.store", tokens, len(texts), byte_tokenizer(), "suite")
    return str(folder / "texts.store")

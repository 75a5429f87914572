"""Every gate: the layers it names are the model's, and leave no weights and no KV."""

from __future__ import annotations

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.methods.gate.skip_layers import SkipLayers
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, Small, small

NAMES = _find.names("gate")
IDS = np.random.default_rng(6).integers(0, N_VOCAB, 30).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_models(name: str) -> None:
    for n in (1, 4, 30):
        skips = _find.defaults("gate", name).skips(n)
        assert set(skips) < set(range(n)) or not skips


def test_skip_layers_skips_nothing_by_default() -> None:
    skips = SkipLayers().skips(3)
    assert (Small(small(skips=skips)).feed(IDS, 30) == Small(small()).feed(IDS, 30)).all()


def test_skipped_layer_leaves_no_weights_and_no_kv() -> None:
    bound, plain = small(skips=SkipLayers((1,)).skips(3)), small()
    assert bound.layers == (0, 2)
    assert not any(key.startswith("1.") for key in [*bound.mats, *bound.vecs])
    a, b = Small(bound), Small(plain)
    assert np.abs(a.feed(IDS, 30) - b.feed(IDS, 30)).max() > 1e-3
    assert a.store.held * 3 == b.store.held * 2


def test_skipping_a_layer_is_passing_its_input_through() -> None:
    """The same as a layer whose two output matrices are zero."""
    from pronghorn.model.bind import bind
    from tests.conformance._rig import weights

    tape, tensors = weights()
    for key in ("1.o", "1.down"):
        tensors[key] = np.zeros_like(tensors[key])
    want = Small(bind(tape, tensors, taps=("q.last1",))).feed(IDS, 30)
    got = Small(small(skips=SkipLayers((1,)).skips(3))).feed(IDS, 30)
    assert np.abs(got - want).max() < 1e-12


@pytest.mark.parametrize("layers", [(-1,), (1, 1)])
def test_skip_layers_refuses_at_once(layers: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match="layers"):
        SkipLayers(layers)


@pytest.mark.parametrize("layers", [(3,), (0, 1, 2)])
def test_skip_layers_refuses_a_model(layers: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match="layers"):
        SkipLayers(layers).skips(3)

"""Curves against bytes: against forecasts step by step, and while layers are still to come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_shared_subspace import mixed_collection
from vlora_engine.adapters.model import MemorySource
from vlora_engine.codec.forecast import RateTables, save_own_table
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.spectra.byte_curves import STEPS, OwnRates, curves_of
from vlora_engine.spectra.size_curves import ladder
from vlora_engine.spectra.tables import Spectra, own_file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra") / "spectra"
    sources = {name: MemorySource(own) for name, own in mixed_collection().items()}
    compute_spectra(sources, folder, codec=True)
    return folder


@pytest.fixture
def rate_tables(place: Path) -> RateTables:
    found = Spectra.load(place).rate_tables()
    assert found is not None
    return found


def test_rates_by_layer_are_the_forecasts_of_own(rate_tables: RateTables) -> None:
    curves = OwnRates().curves(rate_tables)
    for i in range(0, len(STEPS), 5):
        forecast = rate_tables.at("own", float(STEPS[i]))
        assert curves.nbytes[i] == pytest.approx(rate_tables.nbytes(forecast))
        assert curves.mean[i] == pytest.approx(forecast.errors.mean(), abs=1e-6)
        assert curves.worst[i] == pytest.approx(forecast.errors.max(), abs=1e-6)
        assert curves.kept[i] == pytest.approx(forecast.layer_shares, abs=1e-6)
        assert curves.errors[i] == pytest.approx(forecast.layer_errors, abs=1e-6)


def test_a_layer_keeps_the_energy_that_its_tasks_do_not_miss(rate_tables: RateTables) -> None:
    forecast = rate_tables.at("own", 2.0**-6)
    for i, share in enumerate(forecast.layer_shares):
        part = rate_tables.only([i]).forecast(forecast.steps, [forecast.modes[i]])
        energy = rate_tables.energy[i].sum()
        assert share == pytest.approx(1 - np.square(part.errors).sum() / energy)


def test_the_ladder_goes_from_coarse_to_fine(rate_tables: RateTables) -> None:
    names = [layer.name for layer in rate_tables.layers]
    curves = curves_of(names, rate_tables, ladder(rate_tables, "auto", float(STEPS[-1])))
    assert (np.diff(curves.nbytes) >= 0).all()
    assert (np.diff(curves.mean) <= 1e-9).all()
    nbytes = curves.bytes_for(0.95)
    assert 1 - curves.at(nbytes, curves.missed) == pytest.approx(0.95, abs=1e-6)
    assert curves.bytes_for(1.1) is None


def test_of_some_layers_the_rest_is_taken_to_be_like_them(place: Path, tmp_path: Path) -> None:
    whole = Spectra.load(place)
    rate_tables = whole.rate_tables()
    rates = OwnRates()
    names = whole.layer_names[: len(whole.layer_names) // 2]
    part = Spectra.load(place)
    part.path, part.codec, part.is_coded = tmp_path, None, False
    part.layers = {name: part.layers[name] for name in names}
    for i, layer in enumerate(rate_tables.layers):
        if layer.name in names:
            save_own_table(own_file(tmp_path, i), layer)
            part.own[layer.name] = layer
    so_far = part.rate_tables_so_far()
    assert [layer.name for layer in so_far.layers] == names
    share = part.measured_part(names)
    assert 0 < share < 1
    curves = rates.curves(so_far, share)
    i = 12
    alone = rate_tables.only([whole.layer_names.index(name) for name in names])
    forecast = alone.at("own", float(STEPS[i]))
    fixed = rate_tables.overhead + rate_tables.rest_bytes
    assert curves.nbytes[i] == pytest.approx(fixed + forecast.payload / share)
    energy = alone.energy.sum(axis=0)
    errors = np.sqrt(
        np.divide(np.square(forecast.errors), energy, out=np.zeros(len(energy)), where=energy > 0)
    )
    assert curves.mean[i] == pytest.approx(errors.mean(), abs=1e-6)

"""Both passes of an analysis with made-up counts: what they need does not grow with the number of batches."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dist_moe.config.schema import AnalysisConfig, Config, DataConfig, ModelConfig
from dist_moe.data.tokens import Encoded
from dist_moe.measure import parts as parts_module
from dist_moe.measure.parts import CountedParts
from dist_moe.parallel.comm import SoloComm
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import Counts, CountsPlan, MaskStore, plan
from dist_moe.workflows import analyze, count
from dist_moe.workflows.count import Counting
from tests.batches import batch_index

SIZE, L, E, K = 16, 24, 128, 4
UNSAFE = [number >= SIZE // 2 for number in range(SIZE)]


def counted(model, rows, **settings):
    generator = np.random.default_rng([row.prompt_ids[0] for row in rows])
    counts_PLE = np.zeros((len(rows), L, E), np.int64)
    counts_PLE[:, :, :K] = generator.integers(1, 9, (len(rows), L, K))
    return RoutingCounts(counts_PLE, np.full(len(rows), 9), K)


def peak_bytes(tmp_path, num_batches):
    """Of both passes; leaves a store that is whole."""
    config = Config(
        run_dir=tmp_path / str(num_batches),
        model=ModelConfig(path=tmp_path),
        data=DataConfig(paths=(tmp_path,)),
        analysis=AnalysisConfig(statistics=StatisticsConfig(permutations=10, resamples=5, null_draws=2)),
    )
    texts = [str(row) for row in range(SIZE * num_batches)]
    index = batch_index([SIZE] * num_batches, UNSAFE * num_batches, texts, [None] * SIZE * num_batches)
    counts_plan = CountsPlan(
        index=index,
        num_experts=E,
        experts_per_token=K,
        counted_tokens="prompt",
        layer_names=tuple(map(str, range(L))),
        provenance={"model_hash": "m", "tokenizer_hash": "t", "data_hash": "d", "tokens_hash": "k"},
    )
    directory = config.run_dir / "analysis"
    comm = SoloComm(torch.device("cpu"))
    tracemalloc.start()
    parts = CountedParts(directory, {}, index, lambda batch: [Encoded((batch,), (), unsafe) for unsafe in UNSAFE])
    counting = Counting(SimpleNamespace(pad_id=0, unkept=None), "prompt", counts_plan, parts)
    place = count.counted(config, counting, comm)
    analyze._select(config, place, comm, SimpleNamespace(alone=lambda: True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (path,) = {*directory.glob("*.zarr")} - {place}
    store = MaskStore.open(path)
    assert len(store.batches) == num_batches
    assert (Counts.open(place).prompt_counts[:SIZE] == counted(None, parts.rows(0)).counts_PLE).all()
    return peak


def seal(config, counts, writer):
    writer.seal()


@pytest.mark.usefixtures("tmp_path")
def test_memory_does_not_grow_with_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "ROWS_AT_ONCE", SIZE)
    monkeypatch.setattr(plan, "batches_per_file", lambda num_batches: 1)
    model = SimpleNamespace(rows_alone=False, originals=None)
    for module, name, function in (
        (count, "load_model", lambda *_, **settings: model),
        (count, "count_rows", counted),
        (analyze, "_publish", seal),
    ):
        monkeypatch.setattr(module, name, function)
    peak_bytes(tmp_path, 1)  # what is imported and cached once
    # Python's table of names grows once in a while, by megabytes: then only one of two measurements has that.
    few, many = (min(peak_bytes(tmp_path / again, number) for again in "12") for number in (4, 14))
    counts_of_a_batch = 8 * SIZE * L * E
    assert few > counts_of_a_batch, "nothing was measured"
    assert many - few < counts_of_a_batch / 2

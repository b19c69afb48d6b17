"""A small model, prompts and their masks: two batches, a moment to train.

python -m tools.soak.inputs DIRECTORY      writes run.yaml and all that it names
"""

import sys
from pathlib import Path

from dist_moe.cli.main import main
from dist_moe.demo.base_model import make_base_model
from dist_moe.demo.corpus import build_corpus, write_rows

STEPS_PER_EPOCH = 2
CONFIG = """
run_dir: {directory}/run
model: {{path: {directory}/model}}
data: {{paths: [{directory}/prompts.jsonl]}}
analysis: {{threshold: 0.01}}
train: {{lr: 1e-3, eps: 1e-6, masks: {directory}/run/masks.zarr}}
"""

if __name__ == "__main__":
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True)
    corpus = build_corpus(0, num_pretraining=60, batches_per_category=1)
    unsafe = sorted({row.category for row in corpus.prompts if row.label == "unsafe"})
    rows = [row for row in corpus.prompts if row.category not in unsafe[STEPS_PER_EPOCH:]]
    write_rows(rows, directory / "prompts.jsonl")
    make_base_model(directory / "model", corpus, seed=0, steps=1, hidden_size=32, num_layers=2)
    (directory / "run.yaml").write_text(CONFIG.format(directory=directory))
    sys.exit(main(["analyze", "--config", str(directory / "run.yaml")]))

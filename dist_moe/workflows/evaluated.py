"""What `dist-moe evaluate` is given: a run or a model's directory, and how it answers before and after."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.data.batches import plan_batches
from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError
from dist_moe.evaluation.curve import ALPHAS, alpha_name, alpha_place
from dist_moe.evaluation.places import TrainedPrompts
from dist_moe.evaluation.record import ANSWERS, INDEX
from dist_moe.evaluation.score import Subject
from dist_moe.files import require_writable
from dist_moe.hub.names import model_name
from dist_moe.model.model import MoEModel, load_model
from dist_moe.moe.discover import require_routers
from dist_moe.moe.layout import hub_layout
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.save import expert_tensors, load_dense, load_experts
from dist_moe.weights.changes import dense_places
from dist_moe.weights.configuration import read_config
from dist_moe.weights.directory import CONFIG
from dist_moe.weights.trained import TrainedExperts
from dist_moe.weights.values import DTYPES
from dist_moe.workflows.encoding import tokenizer_hash_of
from dist_moe.workflows.evaluation_request import EvaluationRequest
from dist_moe.workflows.inputs import TokenRows
from dist_moe.workflows.silence import Silence, read_silence
from dist_moe.workflows.trained_run import TrainedRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class After:
    """A model that an evaluation is of."""

    name: str
    alpha: float
    """Share of the trained experts' change that it has."""
    place: Path
    """Directory of the evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A run, whose before is its base model, or a model, whose before is another one or nothing."""

    config: Config
    """Of the run, or made of defaults; `data.paths` are the files that are evaluated."""
    own_data: bool
    """Whether these are the run's own."""
    run: TrainedRun | None
    against: Path | None
    """The model that is before. None: a run's base, or there is no before."""
    out: Path
    """Directory of the results."""
    alphas: tuple[float, ...]
    """Of a run: shares of the trained experts' change, ascending, to be evaluated in their place. Empty: all of it."""
    silence: Silence | None = None
    """Of a model's directory: the experts to which no token is routed in what is after; before is the same model."""

    @property
    def afters(self) -> tuple[After, ...]:
        """What is compared with what is before."""
        if not self.alphas:
            return (After("after", 1.0, self.out),)
        return tuple(After(f"alpha {alpha_name(each)}", each, alpha_place(self.out, each)) for each in self.alphas)

    @property
    def before(self) -> Path | None:
        """The model that `before` is of."""
        return self.against if self.run is None else self.config.model.path

    def require_rows_fit(self, rows: TokenRows) -> None:
        """Refuse rows or tokens that are not those that the two models, or the run, have in common.

        Raises:
            UserError: says what is another.
        """
        config = self.config
        if self.run is not None:
            facts, experts = self.run.facts, self.run.dir.experts
            _require_same(
                "the tokenizer or chat template is not that", rows.tokenizer_hash, facts.tokenizer_hash, experts
            )
            if self.own_data:
                _require_same("data.paths are not the prompts", rows.prompts.data_hash, facts.data_hash, experts)
        elif self.against is not None:
            if tokenizer_hash_of(self.against, config.data) != rows.tokenizer_hash:
                raise UserError(
                    f"{self.against} has another tokenizer or chat template than {config.model.path}: their answers "
                    "can be compared token by token only if both are the same; evaluate each by itself"
                )
            sizes = [read_config(path).get_text_config().vocab_size for path in (config.model.path, self.against)]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"{self.against} has a vocabulary of {sizes[1]} tokens, {config.model.path} one of {sizes[0]}: "
                    "evaluate each by itself"
                )

    def require_model(self, model_hash: str) -> None:
        """Refuse another base model than the run's.

        Raises:
            UserError: it is another.
        """
        if self.run is not None:
            what = f"{self.config.model.path} is not the model"
            _require_same(what, model_hash, self.run.facts.model_hash, self.run.dir.experts)

    def load(self, mesh: Mesh) -> tuple[MoEModel, dict[str, Subject]]:
        """The model whose forward passes are told of, and those that are scored: before, if there is one, and `afters`.

        Raises:
            UserError: the checkpoint cannot be read, or its experts cannot be scaled as they are in memory.
        """
        model = self._loaded(self.config.model.path, mesh)
        if self.run is not None:
            num_layers, num_experts = model.shape.num_layers, model.shape.num_experts
            shapes = {name: facts.shape for name, facts in expert_tensors(model.layers).items()}
            self.run.experts.require_fits(num_layers, num_experts, shapes)
            chosen_LE = torch.zeros(num_layers, num_experts, dtype=torch.bool)
            for layer, expert in self.run.experts.experts:
                chosen_LE[layer, expert] = True
            dense = {name: p.shape for name, p in model.module.named_parameters()}
            self.run.experts.require_dense_fits(dense, model.router_names)
            model.train_dense(self.run.experts.dense_names)
            model.keep_originals(chosen_LE)
            assert model.originals is not None
            load_experts(self.run.experts, model.layers)
            load_dense(self.run.experts, model.dense)
            before = Subject(model, model.originals.in_force)
            if not self.alphas:
                return model, {"before": before, "after": Subject(model)}
            in_memory = next(iter(model.layers[0].bank.values())).dtype
            stored = _stored_dtype(self.config.model.path, self.run.experts, in_memory)
            scaled = {after.name: partial(model.originals.scaled, after.alpha, stored) for after in self.afters}
            return model, {"before": before} | {name: Subject(model, each) for name, each in scaled.items()}
        if self.silence is not None:
            self.silence.require_fits(model.shape.num_layers, model.shape.num_experts)
            require_routers(model.module, "cannot be silenced: leave --silence out")
            silenced = partial(model.route_mask.silencing, torch.from_numpy(self.silence.experts_LE))
            return model, {"before": Subject(model), "after": Subject(model, silenced)}
        if self.against is None:
            return model, {"after": Subject(model)}
        other = self._loaded(self.against, mesh)
        return model, {"before": Subject(other), "after": Subject(model)}

    def _loaded(self, path: Path, mesh: Mesh) -> MoEModel:
        return load_model(replace(self.config.model, path=path), mesh.ep, packed=self.config.data.packing)

    def trained_prompts(self) -> TrainedPrompts | str:
        """The rows that the run was trained on, or why they are not known."""
        if self.run is None:
            return "a model's directory does not say what it was trained on"
        config, paths = self.run.config, self.run.config.data.paths
        try:
            prompts = read_prompts(paths, config.data.refusal)
        except UserError as error:
            return f"the rows of the training cannot be read ({error})"
        if prompts.data_hash != self.run.facts.data_hash:
            return f"{', '.join(map(str, paths))}: not the rows of the training any more"
        plan = plan_batches(prompts.prompts, config.batches.batch_size, config.batches.safe_ratio, config.seed)
        dealt = tuple(prompts.prompts[row] for row in plan.taken_P)
        return TrainedPrompts(dealt, tuple(plan.index.batch_of_P.tolist()))


def is_run(path: Path) -> bool:
    """Whether a directory is a run's, and not a model's.

    Raises:
        UserError: there is no directory.
    """
    if not os.path.isdir(path):
        raise UserError(
            f"no directory {path}: expected a run that `dist-moe train` has written, or a model's directory"
        )
    return not os.path.isfile(path / CONFIG)


def read_evaluated(request: EvaluationRequest, *, every_byte: bool) -> Evaluated:
    """Read all but rows and weights; nothing is written. Settings of the request override the run's, or the defaults.

    Raises:
        UserError: something is missing or wrong, or cannot be combined.
    """
    path, data, against, out = request.path, request.data, request.against, request.out
    silence = None if request.silence is None else read_silence(request.silence, request.batches)
    if silence is not None and (is_run(path) or against is not None):
        raise UserError(
            "--silence compares a model's directory with itself: give no --against, and in place of a run its base "
            "model or its export"
        )
    if is_run(path):
        if against is not None:
            raise UserError(f"{path} is a run, which is compared with its base model: leave --against out")
        run = TrainedRun.open(path, request.settings, every_byte=every_byte)
        config = replace(run.config, data=replace(run.config.data, paths=tuple(data) or run.config.data.paths))
        config, chosen = request.applied(config), tuple(sorted({*request.alphas}))
        return Evaluated(config=config, own_data=not data, run=run, against=None, out=out or path, alphas=chosen)
    if request.alphas:
        raise UserError(f"{path} is a model's directory: --alphas needs a run, whose trained experts it scales")
    if not data:
        raise UserError(f"{path} is a model's directory, which has no rows of its own: give --data FILE")
    place = out or Path(f"evaluation-{model_name(path).rpartition('/')[2]}")
    given = ["--run-dir", str(place), "--model.path", str(path), "--data.paths", *map(str, data)]
    return Evaluated(
        config=request.applied(load_config(None, [*request.settings, *given])),
        own_data=False,
        run=None,
        against=against if silence is None else path,
        out=place,
        alphas=(),
        silence=silence,
    )


def require_place(out: Path, *, is_run: bool) -> None:
    """Refuse early a directory for the results that holds something else, or cannot be written.

    Raises:
        UserError: it does.
    """
    if out.exists() and not is_run:
        if not out.is_dir():
            raise UserError(f"cannot write {out}: {os.strerror(errno.ENOTDIR)}: choose another --out")
        if any(each.name not in (INDEX, ANSWERS, ALPHAS) for each in out.iterdir()):
            raise UserError(f"{out} exists and is no earlier evaluation: choose another --out or remove it")
    for name in (INDEX, ANSWERS):
        require_writable(out / name)


def _stored_dtype(path: Path, trained: TrainedExperts, in_memory: torch.dtype) -> torch.dtype:
    """The type of a checkpoint's experts and trained dense weights, of which what is in memory must tell every value.

    Raises:
        UserError: it does not, or there are several.
    """
    layout = hub_layout(path)
    dense = [place.name for place in dense_places(layout, trained)]
    types = sorted({layout.stored[name].dtype for name in (*layout.tensors, *dense)})
    stored = DTYPES[types[0]]
    if len(types) > 1 or torch.promote_types(stored, in_memory) != in_memory:
        raise UserError(
            f"--alphas: what was trained is {' and '.join(types)} in {path}, and {in_memory} in memory (model.dtype), "
            "which is less than an export is made from: export each alpha (dist-moe export --alpha), and evaluate that"
        )
    return stored


def _require_same(what: str, here: str, there: str, experts: Path) -> None:
    if here != there:
        raise UserError(f"{what} that {experts} was trained from: hash {here[:12]}, expected {there[:12]}; restore it")

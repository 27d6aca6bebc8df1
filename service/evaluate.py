"""Score a checkpoint by hand: `python -m service.evaluate CHECKPOINT [--scores fd kid …]`."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from service.address import Address
from service.cli import Options, Positional, Shown, parse, run_command
from service.config import Config, EvaluationSettings
from service.config.feasible import impossible
from service.config.vocabulary import (
    OF_MAPS,
    RANKING,
    REFERENCES,
    FeaturesName,
    RankingName,
    Reference,
    ScoreName,
    beyond_moments,
)
from service.errors import UsageError
from service.outputs import check_output
from service.recording.forecast import duration
from service.storage import open_storage

if TYPE_CHECKING:
    from service.metrics.scores import Setting
    from service.run.best import Trained
    from service.run.ranking import Score
    from service.scoring.scorer import Scorer
    from service.scoring.tradeoff import Axis, Tradeoff

DESCRIPTION = """Score a checkpoint against real images of the data that its run was trained on.

Scoring options default to the run's `evaluation` section."""
EPILOG = """scores:
  fd, kid             feature distances to the reference; with inception, FID and KID
  is                  Inception score
  precision, recall, density, coverage   from the nearest neighbours of features
  swd                 sliced Wasserstein distance of patches at each resolution, × 1000
  ms_ssim             how alike images of a class are; lower is more varied
  ppl_z_full, ppl_z_end, ppl_w_full, ppl_w_end   perceptual path length: how much images change along
                      paths between latents z or styles w, anywhere or at their start; lower is smoother
  separability        do planes between latents tell the images' classes, or --attributes? 1 is perfect
  modes               how many of the data's classes occur, and how their frequencies differ
  birthday            number of different images, from near-duplicates; a lower bound without any
  memorisation        z, below 0 if generated images are nearer to training images than held-out
                      ones are

CHECKPOINT is a run.dir (its best checkpoint) or a folder in its checkpoints/; local or s3://. A score's
name says what it was measured on, for only equal measures compare: fd_efficientnet_lite0_2k_held_out is
of 2,000 generated images against held-out ones, and its …_floor the same distance for real images. The
bare names fid and inception_score are given to what papers mean by them: inception, 50,000 images and,
for fid, --reference training, of which all images are measured. docs/scores.md says more. With --keep,
the score counts when the run's best checkpoint is chosen.

--along truncation scores the checkpoint at several --values: thresholds of |z| (inf is none), or psi for
families with styles. Families that normalise their latents have neither. --out FILE.csv writes a table.
--picture FILE.png draws the Fréchet distance against the Inception score if --scores has both, else each
score along the values, over images of the same latents at each value.

examples:
  python -m service.evaluate runs/digits
  python -m service.evaluate runs/digits/checkpoints/000000149000-000001-000005 --scores fd kid recall
  python -m service.evaluate s3://gan/runs/faces --features inception --weights inception.pth \\
      --reference training --images 50000 --save-reference faces.npz
  python -m service.evaluate runs/digits --along truncation --scores fd is --picture tradeoff.png"""


RETRY_S = 20.0
MOST_VALUES = 32
PAIRS_SHOWN = 40
PAIR_COLUMNS = 8  # four pairs in a row
SCORE_KEYS = frozenset({"clock", "resolution", "samples"})
"""What every JSON file of scores has, with --along and without."""
TABLE_COLUMNS = frozenset({"threshold", "psi"})
"""The first column of a table."""


class EvaluateOptions(Options):
    """What to score, how, and where the scores go."""

    checkpoint: Positional[Address]
    """run.dir or checkpoint; local or s3://"""
    scores: Annotated[list[ScoreName] | None, Shown("SCORE")] = None
    """scores to compute, from the list below"""
    best: RankingName | None = None
    """score to rank by (default: the run's, else the first that ranks)"""
    images: Annotated[int | None, Field(ge=10, le=10_000_000)] = None
    """number of generated images, and the largest number of real ones"""
    features: FeaturesName | None = None
    """network whose features are compared"""
    weights: Address | None = None
    """file or URL of inception's weights"""
    reference: Annotated[Reference | None, Shown("REFERENCE")] = None
    """held_out, training (all of them, for fd), or a .npz file of mu and sigma, as pytorch-fid's"""
    save_reference: Path | None = None
    """.npz file to write the reference's mu and sigma to"""
    attributes: Address | None = None
    """CSV file of attributes of the data's images, for separability (default: their classes)"""
    data: Address | None = None
    """folder or s3:// address of the shards, if they have moved"""
    out: Path | None = None
    """JSON file to write the scores to; with --along also .csv"""
    pairs: Path | None = None
    """PNG of the generated images that are most alike, in pairs; needs the score birthday"""
    keep: bool = False
    """let the score count when the run's best checkpoint is chosen"""
    along: Literal["truncation"] | None = None
    """score at several values of it"""
    values: Annotated[list[float] | None, Shown("X")] = None
    """values of --along (default: thresholds from 0.2 to inf, or psi from 0.2 to 1)"""
    picture: Path | None = None
    """PNG file to draw --along to"""

    @field_validator("values")
    @classmethod
    def _ascend(cls, values: list[float] | None) -> list[float] | None:
        if values is None:
            return None
        ascending = sorted(set(values))
        if any(map(math.isnan, values)) or not 2 <= len(ascending) <= MOST_VALUES:
            raise ValueError(f"give 2 to {MOST_VALUES} different numbers, such as 0.5 1 inf")
        return ascending

    @model_validator(mode="after")
    def _go_together(self) -> "EvaluateOptions":
        if self.along and self.keep:
            raise ValueError(
                "--keep: scores of truncated images do not rank; leave out --along or --keep"
            )
        if self.along and self.pairs:
            raise ValueError("--pairs: of images without truncation; leave out --along or --pairs")
        for name in ("values", "picture"):
            if getattr(self, name) is not None and not self.along:
                raise ValueError(f"--{name}: only --along takes it; add --along truncation")
        if self.save_reference and self.save_reference.suffix != ".npz":
            raise ValueError(f"--save-reference {self.save_reference}: name a .npz file")
        if self.out and self.out.suffix.lower() == ".csv" and not self.along:
            raise ValueError(f"--out {self.out}: only --along writes a table; name a .json file")
        if self.out and self.out.suffix.lower() not in (".json", ".csv"):
            raise ValueError(f"--out {self.out}: it is written as JSON; name a .json file")
        for name in ("pairs", "picture"):
            file: Path | None = getattr(self, name)
            if file and file.suffix.lower() != ".png":
                raise ValueError(f"--{name} {file}: it is written as PNG; name a .png file")
        return self


def main(arguments: Sequence[str]) -> None:
    """Parse, load, score, print."""
    options = parse(EvaluateOptions, arguments, "service.evaluate", DESCRIPTION, EPILOG)
    for option in ("out", "save_reference", "pairs", "picture"):
        if file := getattr(options, option):
            check_output(f"--{option.replace('_', '-')}", file, TABLE_COLUMNS, SCORE_KEYS)
    # here because they load torch, which errors and --help do not need
    from service.run import commits, ranking
    from service.run.best import load

    trained = load(options.checkpoint)
    axis = _axis(options, trained)
    settings = _settings(trained.config.evaluation, options)
    if problem := impossible(settings, trained.family, trained.shape):
        raise UsageError(problem.replace("evaluation.", "--", 1))
    scorer = _open_scorer(options, trained, settings)
    if options.keep:
        storage = open_storage(trained.place.run_dir, RETRY_S)
        others = [name for name in commits.find(storage)[0] if name != trained.place.name]
        ranking.check_comparable(storage, others, scorer.measure)
    setting = scorer.setting(trained.stage.resolution)
    print(_comparison(setting), flush=True)
    if options.save_reference:
        scorer.save_reference(options.save_reference)
    if axis:
        _score_along(options, scorer, trained, axis)
    else:
        _score_once(options, scorer, trained)


def _comparison(setting: "Setting") -> str:
    """How many images are compared with what."""
    drawn = f"{setting.generated} generated images"
    match setting.reference:
        case "held_out":
            return f"{drawn}, {setting.held_out} held-out ones"
        case "training":
            return f"{drawn}, {setting.training} training ones; for fd, all that there are"
    return f"{drawn}, the moments in {setting.reference}"


def _axis(options: EvaluateOptions, trained: "Trained") -> "Axis | None":
    """What to score along; UsageError if the checkpoint cannot be truncated so."""
    from service.scoring.tradeoff import axis_of

    return axis_of(trained, options.values) if options.along else None


def _score_once(options: EvaluateOptions, scorer: "Scorer", trained: "Trained") -> None:
    """Score without truncation, a line for each value, and keep and write what is asked for."""
    from service.recording.pictures import LEAST_SHOWN_PIXELS, GridLook, grid_png
    from service.run import ranking

    score = scorer.score(trained)
    for name, value in score.values.items():
        print(f"{name} {value:.6g}{_remark(score.values, name)}")
    if options.keep:
        ranking.write(open_storage(trained.place.run_dir, RETRY_S), trained.place.name, score)
    if options.pairs:
        images = scorer.nearest_pairs(trained, PAIRS_SHOWN)
        options.pairs.write_bytes(grid_png(images, GridLook(PAIR_COLUMNS, LEAST_SHOWN_PIXELS)))
    if options.out:
        options.out.write_bytes(TypeAdapter(type(score)).dump_json(score, indent=2))  # NaN as null


def _remark(values: Mapping[str, float], name: str) -> str:
    """What a reader must know of a value beside its number."""
    pairs = values.get(name.replace("birthday_", "birthday_pairs_", 1), 1)
    return "" if pairs else " or more: no two images are alike; raise --images"


def _score_along(options: EvaluateOptions, scorer: "Scorer", trained: "Trained", axis: "Axis") -> None:
    """Score at each value, with a line for each, and write what is asked for."""
    from service.scoring.tradeoff import Tradeoff

    scores: list[Score] = []
    for count, value in enumerate(axis.values, 1):
        begun = time.monotonic()
        score = scorer.score(trained, axis.truncation(value))
        left = duration((time.monotonic() - begun) * (len(axis.values) - count))
        if not scores:
            print("  ".join([f"{axis.name:>9}", *(f"{name:>9}" for name in score.values), "left"]))
        numbers = (f"{number:>{max(9, len(name))}.5g}" for name, number in score.values.items())
        print("  ".join([f"{axis.caption(value):>9}", *numbers, left]), flush=True)
        scores.append(score)
    tradeoff = Tradeoff(trained.address, axis, tuple(scores))
    if options.out:
        is_table = options.out.suffix.lower() == ".csv"
        options.out.write_text(tradeoff.to_csv() if is_table else tradeoff.to_json())
    if options.picture:
        options.picture.write_bytes(_picture(scorer, trained, tradeoff))
        print(options.picture)


def _picture(scorer: "Scorer", trained: "Trained", tradeoff: "Tradeoff") -> bytes:
    from service.scoring.tradeoff_picture import draw_samples, draw_tradeoff

    samples = draw_samples(trained, [*map(tradeoff.axis.truncation, tradeoff.axis.values)])
    curve = scorer.protocol.name("is"), scorer.protocol.name("fd")
    return draw_tradeoff(tradeoff, samples, curve if {*curve} <= {*tradeoff.names} else None)


def _open_scorer(options: EvaluateOptions, trained: "Trained", settings: EvaluationSettings) -> "Scorer":
    """The scorer, on the run's data; UsageError if it is other data, or too little for the scores."""
    from service.data.index import read_index
    from service.metrics.scores import check_scores
    from service.scoring.check import check_evaluation, need_network
    from service.scoring.scorer import Scorer

    config = _config(trained.config, options)
    for address in (config.data.url, config.data.index_address):
        _check_own(trained, "data", address, options.data)
    if settings.weights:
        _check_own(trained, "weights", settings.weights, options.weights)
    _check_own(trained, "reference", settings.reference, options.reference)
    if settings.attributes:
        _check_own(trained, "attributes", settings.attributes, options.attributes)
    index = read_index(open_storage(config.data.index_address, RETRY_S))
    if index.fingerprint() != trained.fingerprint:
        raise UsageError(
            f"{config.data.index_address}: fingerprint {index.fingerprint()}, but the run was trained on"
            f" {trained.fingerprint}; give the run's own data with --data"
        )
    check_evaluation(settings, index, config.model.resolution)
    if options.save_reference and not need_network(settings.scores, index):
        raise UsageError("--save-reference: nothing to measure; add fd to --scores")
    print(f"{trained.address}: {trained.clock} images, {trained.stage.resolution} px", flush=True)
    scorer = Scorer(config, settings, open_storage(trained.place.run_dir, RETRY_S))
    check_scores(settings.scores, scorer.setting(trained.stage.resolution))
    return scorer


def _check_own(trained: "Trained", option: str, address: str, given: str | None) -> None:
    """UsageError if an address of the checkpoint's own configuration leads elsewhere and was not given.

    A checkpoint may be anybody's: what its configuration names is not fetched unasked, with our keys.
    """
    bucket = re.match(r"\w+://[^/]+", address)
    if bucket and given is None and not trained.address.startswith(f"{bucket[0]}/"):
        raise UsageError(
            f"{trained.address}: its configuration reads {option} from {address}; give --{option}"
            f" {address} if that is right"
        )


def _config(config: Config, options: EvaluateOptions) -> Config:
    """The run's configuration, reading the data at `--data` if that is set."""
    if not options.data:
        return config
    moved = config.data.model_copy(update={"url": options.data, "index_url": None})
    return config.model_copy(update={"data": moved})


def _settings(usual: EvaluationSettings, options: EvaluateOptions) -> EvaluationSettings:
    """The run's settings, overridden by the command line."""
    named = {"scores", "images", "features", "weights", "reference", "attributes"}
    changes = options.model_dump(include=named, exclude_none=True)
    wanted = changes.get("scores", usual.scores)
    ranked = [score for score in wanted if score in RANKING]
    if options.best and options.best not in wanted:
        raise UsageError(f"--best {options.best}: not among --scores {' '.join(wanted)}; add it there")
    reference = changes.get("reference", usual.reference)
    if beyond := beyond_moments(wanted, reference):
        raise UsageError(
            f"{', '.join(beyond)}: cannot be computed from {reference}, which holds only moments; leave"
            " them out, or give --reference held_out or training"
        )
    if options.save_reference and reference not in REFERENCES:
        raise UsageError("--save-reference: nothing to measure; give --reference held_out or training")
    if options.along and (fixed := [score for score in wanted if score in OF_MAPS]):
        raise UsageError(f"--along: {', '.join(fixed)}: measured without truncation; leave it out")
    if options.attributes and "separability" not in wanted:
        raise UsageError("--attributes: only separability takes them; add it to --scores")
    if options.pairs and "birthday" not in wanted:
        raise UsageError(f"--pairs {options.pairs}: shows what birthday counts; add it to --scores")
    if options.keep and not ranked:
        raise UsageError(
            f"--keep: --scores {' '.join(wanted)} cannot rank; add one of {', '.join(RANKING)}"
        )
    best = options.best or (usual.best if usual.best in wanted else ranked[0] if ranked else wanted[0])
    return usual.model_copy(update=changes | {"best": best})


if __name__ == "__main__":
    run_command(main)

"""Score a checkpoint by hand: `python -m service.evaluate CHECKPOINT [--scores fd kid …]`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from service.cli import check_bounds, run_command
from service.config import Evaluation
from service.data.index import read_index
from service.errors import UsageError
from service.metrics.features import NAMES
from service.metrics.scores import RANKING, SCORES, check_scores
from service.storage import open_storage
from service.training import checkpoint, scores
from service.training.evaluation import Scorer
from service.training.run import check_evaluation
from service.training.trained import RETRY_S, load, place_of

DESCRIPTION = """Score a checkpoint against held-out images of the data that its run was trained on.

What is not given is as the run has it in its section `evaluation`."""
EPILOG = """scores:
  fd, kid             distances of features to held-out images; of inception they are FID and KID
  is                  Inception score
  precision, recall, density, coverage   of features, by nearest neighbours
  swd                 sliced Wasserstein distance of patches, by resolution, × 1000
  ms_ssim             how alike images of a class are; lower is more varied
  memorisation        whether images are nearer to training images than held-out ones are (z below 0)

CHECKPOINT is a run.dir, for its best, or one of the folders in its checkpoints/; local or s3://.
Scores depend on how many images are compared: compare at equal numbers. With --keep the score counts
when the run's best checkpoint is chosen.

examples:
  python -m service.evaluate runs/digits
  python -m service.evaluate runs/digits/checkpoints/000000149000-000001-000005 --scores fd kid recall
  python -m service.evaluate s3://gan/runs/faces --features inception --weights inception.pth"""


def main(arguments: Sequence[str]) -> None:
    """Parse, load, score, tell."""
    parser = argparse.ArgumentParser(
        prog="python -m service.evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run.dir or checkpoint, local or s3://")
    parser.add_argument("--scores", nargs="+", metavar="SCORE", help=f"of {', '.join(SCORES)}")
    parser.add_argument("--best", choices=RANKING, help="which of them ranks (the first that can)")
    parser.add_argument("--images", type=int, help="generated images, and most real ones")
    parser.add_argument("--features", choices=NAMES, help="network whose features are compared")
    parser.add_argument("--weights", help="file or URL of inception's weights")
    parser.add_argument("--data", help="folder or s3:// address of the shards, if they have moved")
    parser.add_argument("--out", type=Path, help="write the scores there as JSON")
    parser.add_argument("--keep", action="store_true", help="let the score count for the run's best")
    options = parser.parse_args(arguments)
    if options.images is not None:
        check_bounds(options, {"images": (10, 10_000_000)})
    if options.out:
        _check_out(options.out)
    trained = load(options.checkpoint)
    settings = _settings(trained.config.evaluation, options)
    config = trained.config
    if options.data:
        moved = config.data.model_copy(update={"url": options.data, "index_url": None})
        config = config.model_copy(update={"data": moved})
    index = read_index(open_storage(config.data.index_address, RETRY_S))
    if index.fingerprint() != trained.fingerprint:
        raise UsageError(
            f"{config.data.index_address}: fingerprint {index.fingerprint()}, but the run was trained on"
            f" {trained.fingerprint}; give --data the data of the run"
        )
    check_evaluation(settings, index)
    place = place_of(trained.address)
    assert place, trained.address
    storage = open_storage(place[0], RETRY_S)
    print(f"{trained.address}: {trained.images} images, {trained.stage.resolution} px", flush=True)
    scorer = Scorer(config, settings, storage)
    setting = scorer.setting(trained.stage.resolution)
    check_scores(settings.scores, setting)
    if options.keep:
        others = [name for name in checkpoint.find(storage)[0] if name != place[1]]
        scores.check_comparable(storage, others, scorer.measure)
    print(f"{setting.generated} drawn, against {setting.held_out} held out", flush=True)
    found = scorer.score(trained)
    for key, value in found.values.items():
        print(f"{key} {value:.6g}")
    if options.keep:
        scores.write(storage, place[1], found)
    if options.out:
        options.out.write_text(json.dumps(asdict(found), indent=2))


def _check_out(out: Path) -> None:
    """Make its folder; UsageError where no file can be written there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError("is a folder")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error}; name a file") from error


def _settings(usual: Evaluation, options: argparse.Namespace) -> Evaluation:
    """The run's own, with what the command line says over them."""
    named = {name: getattr(options, name) for name in ("scores", "images", "features", "weights")}
    given = {name: value for name, value in named.items() if value is not None}
    wanted = given.get("scores", usual.scores)
    ranking = [score for score in wanted if score in RANKING]
    if options.best and options.best not in wanted:
        raise UsageError(f"--best {options.best}: is none of --scores {' '.join(wanted)}; add it there")
    if options.keep and not ranking:
        raise UsageError(
            f"--keep: none of --scores {' '.join(wanted)} ranks; add one of {', '.join(RANKING)}"
        )
    best = options.best or (usual.best if usual.best in wanted else ranking[0] if ranking else "")
    return usual.model_copy(update=given | {"best": best})


if __name__ == "__main__":
    run_command(main)

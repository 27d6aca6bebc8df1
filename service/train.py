"""Train a GAN: `python -m service.train --preset NAME [--section.key VALUE …]`.

The same command on the same run.dir continues from the last committed checkpoint.
"""

import math
import shlex
from collections.abc import Sequence

from service import environment
from service.cli import run_command
from service.config import Config
from service.config.command_line import ConfigOptions, parse_config
from service.config.yaml import to_yaml
from service.driver.settle import settle
from service.recording.pictures import FOLDER, latest_grids
from service.storage import is_s3, open_storage

EPILOG = """examples:
  python -m service.train --preset digits --run.dir runs/mine
  python -m service.train --preset fashion --data.url data/flowers --run.dir runs/flowers \\
    --model.channels 3 --model.classes 5 --scale.workers 2"""


class TrainOptions(ConfigOptions):
    """How to start."""

    again: bool = False
    """Try once more what ended the run for a reason that lasts, with the same settings."""


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options, config = parse_config(TrainOptions, arguments, "service.train", __doc__ or "", EPILOG)
    config = settle(config)
    if options.print_config:
        print(to_yaml(config), end="")
        return
    from service.driver.launch import launch  # loads torch and Ray, which errors do not need

    # Nobody is there to start a submitted job again once the run is free.
    launch(config, again=options.again, patience_s=math.inf if environment.is_ray_job() else 0)
    _print_places(config)


def _print_places(config: Config) -> None:
    """Print where the results of the run are."""
    if is_s3(config.run.dir):
        print(f"done: checkpoints and pictures in {config.run.dir}, curves at {config.tracking.uri}")
        return
    grids = latest_grids(open_storage(config.run.dir).sizes(f"{FOLDER}/"))
    if grids:
        print(f"final picture: {config.run.dir}/{grids[-1][1]}")
    if config.tracking.uri is None:
        database = shlex.quote(config.tracking_uri)
        print(f"MLflow: mlflow ui --backend-store-uri {database}")


if __name__ == "__main__":
    run_command(main)

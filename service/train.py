"""Train a GAN: `python -m service.train --preset NAME [--section.key VALUE …]`.

The same command on the same run.dir goes on from the last committed checkpoint.
"""

import shlex
from collections.abc import Sequence

from service.cli import run_command
from service.config import Config, parse, to_yaml
from service.recording.pictures import FOLDER, latest_grids
from service.storage import is_s3, open_storage
from service.training.launch import launch
from service.training.run import settle


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    config, show = parse(arguments, "service.train", __doc__ or "")
    config = settle(config)
    if show:
        print(to_yaml(config), end="")
        return
    launch(config)
    _tell(config)


def _tell(config: Config) -> None:
    """Where things are, now that the run is over."""
    if is_s3(config.run.dir):
        print(f"done: checkpoints and pictures in {config.run.dir}, curves at {config.tracking.uri}")
        return
    grids = latest_grids(open_storage(config.run.dir).sizes(f"{FOLDER}/"))
    if grids:
        print(f"final picture: {config.run.dir}/{grids[-1][1]}")
    if config.tracking.uri is None:
        database = shlex.quote(f"sqlite:///{config.run.dir}/mlflow.db")
        print(f"MLflow: mlflow ui --backend-store-uri {database}")


if __name__ == "__main__":
    run_command(main)

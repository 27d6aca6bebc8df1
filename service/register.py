"""Put a trained generator in MLflow's registry: `python -m service.register CHECKPOINT --name NAME`."""

import argparse
from collections.abc import Sequence

from service.cli import run_command
from service.errors import UsageError
from service.recording.mlflow import check_no_credentials
from service.registry import check_names, register

DESCRIPTION = "Register a checkpoint as a model that mlflow.pyfunc loads, and give it an alias."
EPILOG = """The model takes a table of seed, class (optional) and truncation (optional), and gives uint8
images [n, h, w, c]. A checkpoint that is registered under the name already is given the alias alone.

examples:
  python -m service.register runs/digits --name digits --tracking-uri sqlite:///runs/digits/mlflow.db
  python -m service.register s3://gan/runs/faces/checkpoints/000000032000-000001-000001 \\
    --name faces --alias candidate --tracking-uri http://mlflow:5000

in Python:
  model = mlflow.pyfunc.load_model("models:/digits@best")
  images = model.predict([{"seed": 1, "class": 3}, {"seed": 2, "class": 4, "truncation": 0.5}])"""


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    parser = argparse.ArgumentParser(
        prog="python -m service.register",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT",
        help="a run.dir, for its best, or one of the folders in its checkpoints/")  # fmt: skip
    add("--name", required=True, help="the registered model's")
    add("--alias", default="best", help="of this version (default %(default)s)")
    add("--tracking-uri", required=True, help="MLflow's address, or sqlite:///FILE of a run")
    add("--experiment", default="gan-training", help="MLflow's experiment (default %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("checkpoint", "name", "alias", "tracking_uri", "experiment"):
        if not getattr(options, name).strip():
            raise UsageError(f"{name.replace('_', '-')}: empty; see --help")
    check_names("--name", options.name, options.alias)
    check_no_credentials("--tracking-uri", options.tracking_uri)
    version = register(
        options.checkpoint, options.tracking_uri, options.experiment, options.name, options.alias
    )
    print(f"registered: {version}")


if __name__ == "__main__":
    run_command(main)

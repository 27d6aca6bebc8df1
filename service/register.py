"""Put a trained generator in MLflow's registry: `python -m service.register CHECKPOINT --name NAME`."""

from collections.abc import Sequence

from pydantic import field_validator

from service.address import Address
from service.cli import Options, Positional, Text, parse, run_command
from service.generation.names import check_alias, check_name

DESCRIPTION = "Register a checkpoint as a model that mlflow.pyfunc loads, and give it an alias."
EPILOG = """The model takes a table of seed, class (optional) and truncation (optional), and returns
uint8 images [n, h, w, c]. A checkpoint that is registered already only gets the alias.

examples:
  python -m service.register runs/digits --name digits --tracking-uri sqlite:///runs/digits/mlflow.db
  python -m service.register s3://gan/runs/faces/checkpoints/000000032000-000001-000001 \\
    --name faces --alias candidate --tracking-uri http://mlflow:5000

in Python:
  model = mlflow.pyfunc.load_model("models:/digits@best")
  images = model.predict([{"seed": 1, "class": 3}, {"seed": 2, "class": 4, "truncation": 0.5}])"""


class RegisterOptions(Options):
    """What to register, where, and under which names."""

    checkpoint: Positional[Address]
    """a run.dir (its best checkpoint) or a folder in its checkpoints/; local or s3://"""
    name: Text
    """name of the registered model"""
    alias: Text = "best"
    """alias of this version"""
    tracking_uri: Address
    """MLflow's address, or sqlite:///FILE of a run"""
    experiment: Text = "gan-training"
    """MLflow's experiment"""

    check_name = field_validator("name")(check_name)
    check_alias = field_validator("alias")(check_alias)


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = parse(RegisterOptions, arguments, "service.register", DESCRIPTION, EPILOG)
    from service.generation.registry import register  # loads torch, which errors do not need

    version = register(
        options.checkpoint, options.tracking_uri, options.experiment, options.name, options.alias
    )
    print(f"registered: {version}")


if __name__ == "__main__":
    run_command(main)

"""What a training would do, without doing it: `python -m service.plan --preset NAME [--section.key …]`.

Takes the settings of service.train. Checks the data, and prints phases, worker counts and memory.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from service.cli import run_command
from service.config.command_line import ConfigOptions, parse_config
from service.config.yaml import to_yaml
from service.driver.settle import settle

EPILOG = """examples:
  python -m service.plan --preset digits
  python -m service.plan --preset digits --explain-batch 100"""


class PlanOptions(ConfigOptions):
    """What to print."""

    explain_batch: Annotated[int | None, Field(ge=0, le=10**12)] = None
    """Print the samples of the discriminator's batch with this number; 0 is the first."""


def main(arguments: Sequence[str]) -> None:
    """Parse, check, print."""
    options, config = parse_config(PlanOptions, arguments, "service.plan", __doc__ or "", EPILOG)
    config = settle(config)
    if options.print_config:
        print(to_yaml(config), end="")
        return
    # here because they load torch, which errors and --help do not need
    from service.driver.plan import explain, plan
    from service.driver.preflight import check_data, check_networks, check_run
    from service.engine.curriculum import curriculum_of

    index = check_data(config)
    prepared = check_networks(config, check_run(config, index))
    curriculum = curriculum_of(config)
    number = options.explain_batch
    lines = (
        plan(config, index, curriculum) if number is None else explain(config, index, curriculum, number)
    )
    for line in lines:
        print(line)
    if prepared:
        print(f"\ninit     {prepared}")


if __name__ == "__main__":
    run_command(main)

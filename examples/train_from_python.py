"""Train from Python: a preset, some settings over it, and the same launch as `python -m service.train`.

python -m service.pack digits data/digits --channels gray
python examples/train_from_python.py data/digits runs/from-python
"""

import argparse
from typing import Any

from service.config import Config
from service.config.yaml import load_preset
from service.driver.launch import launch
from service.driver.settle import settle
from service.errors import ServiceError
from service.run.best import load


def main(url: str, folder: str, **settings: Any) -> None:
    """Train the digits preset on the shards at `url` into `folder`; `settings` go over its sections."""
    values = load_preset("digits")
    values["data"] |= {"url": url}
    values["run"] |= {"dir": folder}
    for section, changes in settings.items():
        values[section] = values.get(section, {}) | changes if isinstance(changes, dict) else changes
    launch(settle(Config(**values)))
    trained = load(folder)  # the best checkpoint, or the newest if none was scored
    print(
        f"{trained.address}: {trained.family} at {trained.stage.resolution} px, clock {trained.clock:,}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="folder or s3:// address of packed digits")
    parser.add_argument("folder", help="where the run is kept; the same command goes on with it")
    options = parser.parse_args()
    try:
        main(options.url, options.folder)
    except ServiceError as error:
        parser.error(str(error))

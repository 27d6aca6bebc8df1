"""The MNIST progressive GAN: ProGAN's recipe on 7→14→28 px, small enough for a CPU."""

from models.families import MnistPGGANConfig
from models.progan import Discriminator, Generator


def build(config: MnistPGGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)

"""Reads given weights where they lie: in a run, a checkpoint, an export, or files of BigGAN-PyTorch."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

import models
from models import Shape
from service import pretrained
from service.config import Config
from service.errors import DataError, UsageError
from service.generation.names import WEIGHTS_KEY
from service.run.best import place_of, read_parts
from service.run.checkpoint import is_finite
from service.run.unpack import unpack
from service.storage import MissingError, Storage, open_storage, split_address
from service.weights import biggan_pytorch
from service.weights.biggan_pytorch import Weights

RETRY_S = 20.0
SAFETENSORS = ".safetensors"
FILES = (SAFETENSORS, ".pth", ".pt")
ZIP = b"PK"
OLD_REMEDY = (
    "if torch before 1.6 wrote it, write it anew: torch.save(torch.load(FILE, weights_only=True), FILE)"
)
GENERATOR_FILES, DISCRIMINATOR_FILE = ("G_ema.pth", "G.pth"), "D.pth"
"""BigGAN-PyTorch's own names; the running average goes first."""
GENERATOR_NAMES, DISCRIMINATOR_NAMES = ("G_ema.", "G."), "D."
"""What names begin with in a file that holds several networks."""


@dataclass(frozen=True)
class Given:
    """Weights on the CPU by this service's names, and the networks that they belong to.

    `address` is where exactly they were, `digest` the SHA-256 of what was read (of a checkpoint, the
    digest in its manifest, which covers its files). Without a discriminator, its weights are empty.
    """

    address: str
    digest: str
    family: str
    shape: Shape
    generator: Weights
    discriminator: Weights

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `models.build`, beside the family."""
        return dataclasses.asdict(self.shape)


def read(address: str) -> Given:
    """The weights at an address: of the EMA, and of the discriminator where there is one.

    A run.dir gives its best checkpoint. UsageError if there is nothing of the kind at the address,
    DataError if it is damaged, StorageError if it cannot be read.
    """
    given = _read(address)
    if not is_finite({**given.generator, **given.discriminator}):
        raise DataError(f"{given.address}: holds NaN or infinity; choose an earlier checkpoint")
    return given


def _read(address: str) -> Given:
    if address.endswith(FILES):
        try:
            folder, name = split_address(address)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return _from_files(open_storage(folder, RETRY_S), [name])
    if place_of(address) is None:
        storage = open_storage(address, RETRY_S)
        if storage.sizes(WEIGHTS_KEY):
            return _from_files(storage, [WEIGHTS_KEY])
        generators = [name for name in GENERATOR_FILES if storage.sizes(name)]
        if generators:
            return _from_files(storage, [generators[0], *storage.sizes(DISCRIMINATOR_FILE)])
    return _from_checkpoint(address)


def _from_checkpoint(address: str) -> Given:
    try:
        storage, name, tensors, manifest = read_parts(address, ("ema", "discriminator"))
    except UsageError as error:
        raise UsageError(
            f"{error}; also taken are an export's folder or its {WEIGHTS_KEY}, and files of"
            " BigGAN-PyTorch (.pth)"
        ) from error
    config = Config.stored(manifest.config)
    return Given(
        storage.url(name.folder),
        manifest.digest or hashlib.sha256(manifest.to_bytes()).hexdigest(),
        config.model.family,
        config.shape,
        tensors["ema"],
        tensors["discriminator"],
    )


def _from_files(storage: Storage, names: list[str]) -> Given:
    """The weights of one file, or of BigGAN-PyTorch's for each network."""
    digest, networks = hashlib.sha256(), {}
    address = storage.url(names[0])
    for name in names:
        try:
            data = storage.get(name)
        except MissingError as error:
            raise UsageError(f"{storage.url(name)}: no such file; correct the address") from error
        digest.update(data)
        tensors, metadata = _open(data, storage.url(name))
        if pretrained.HEADER in metadata:
            export = pretrained.to_exported(address, tensors, metadata)
            own = export.generator.state_dict()
            return Given(address, digest.hexdigest(), export.family, export.shape, own, {})
        networks[name] = tensors
    generator, discriminator = _split(networks)
    try:
        family, settings, *weights = biggan_pytorch.convert(generator, discriminator)
        shape = models.configure(family, **settings)
    except (ValueError, RuntimeError, OverflowError) as error:  # torch's, for sizes above 2⁶³
        raise DataError(
            f"{address}: neither an export of this service nor a BigGAN or BigGAN-deep of BigGAN-PyTorch"
            f" with --hier and --G_shared ({error}); give such a file, a run.dir or a checkpoint"
        ) from error
    return Given(address, digest.hexdigest(), family, shape, *weights)


def _open(data: bytes, address: str) -> tuple[Weights, Mapping[str, str]]:
    """The tensors of a file by name, and its metadata; nested names are joined by dots."""
    remedy = "copy it again, or give a file of tensors by name"
    try:
        if address.endswith(SAFETENSORS):
            tensors = safetensors.torch.load(data)
            head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return tensors, head.get("__metadata__") or {}
        if not data.startswith(ZIP):
            remedy = OLD_REMEDY
        return dict(_flat(unpack(data))), {}
    except (SafetensorError, ValueError, LookupError) as error:
        raise DataError(f"{address}: {error}; {remedy}") from error


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, item in content.items():
        if isinstance(item, Tensor):
            yield f"{prefix}{name}", item
        elif isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}.")


def _split(networks: Mapping[str, Weights]) -> tuple[Weights, Weights]:
    """The generator's weights and the discriminator's; a file of no other name holds a generator."""
    generator: Weights = {}
    discriminator: Weights = {}
    for name, tensors in networks.items():
        prefix = next((p for p in GENERATOR_NAMES if _below(tensors, p)), None)
        if name == DISCRIMINATOR_FILE:
            discriminator = tensors
        elif prefix is None:
            generator = tensors
        else:
            generator, discriminator = _below(tensors, prefix), _below(tensors, DISCRIMINATOR_NAMES)
    return generator, discriminator


def _below(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

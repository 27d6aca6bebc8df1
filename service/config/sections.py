"""The sections of a configuration: every setting with its type, its bounds and what it means.

A setting's docstring is what `--help` and docs/configuration.md say of it.
"""

import re
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from service.address import Address
from service.config.schedule import (
    Scheduled,
    ScheduledDecay,
    ScheduledHalfLife,
    ScheduledRate,
    ScheduledShare,
    ScheduledWeight,
    at,
)
from service.config.vocabulary import FeaturesName, RankingName, Reference, ScoreName

Count = Annotated[int, Field(ge=1)]
Images = Annotated[int, Field(ge=1)]
"""Real images shown to the discriminator, over all workers."""


def _to_number(value: Any) -> Any:
    """Flags come as text, which a literal number would refuse."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a NUL character, which no path or name may; leave it out")
        return value


class RunSettings(Section):
    """What is run and where it is kept."""

    dir: Address
    """Folder or s3:// address of checkpoints, pictures and MLflow's database; a second start resumes."""
    images: Images | None = None
    """Stop at this clock; the default is the end of the phase table."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Key of every random draw, of the data order and of the initial weights."""
    freeze: dict[str, Images] = {}
    """What stays as it is up to a clock, as {"discriminator.first.2": 10000}: blocks by their names."""
    init: Address | None = None
    """First weights: a run.dir, a checkpoint, an export, or files of BigGAN-PyTorch; null draws them."""

    @field_validator("freeze")
    @classmethod
    def _names_parts(cls, value: dict[str, int]) -> dict[str, int]:
        for name in value:
            if not re.fullmatch(r"(generator|discriminator)(\.\w+)+", name):
                raise ValueError(
                    f"{name!r} names no part of a network; write generator.PART or discriminator.PART"
                )
        return value

    def frozen_at(self, clock: int) -> tuple[str, ...]:
        """The names of what is frozen in a cycle that begins at this clock."""
        return tuple(name for name, images in self.freeze.items() if clock < images)

    @property
    def name(self) -> str:
        """The run's name: the last part of its directory."""
        return self.dir.rstrip("/").rpartition("/")[2]


class ModelSettings(Section):
    """The two networks. null means the family's default, or that the family has no such setting."""

    family: Literal["dcgan", "sagan", "biggan", "biggan-deep", "progan", "stylegan", "mnist-pggan"]
    """The family of networks."""
    resolution: int = Field(ge=7, le=1024)
    """Pixels per side at the last rung."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_to_number)]
    """1 for gray images, 3 for RGB."""
    classes: Count | None = None
    """Number of labels, from 0 to classes − 1; null trains without labels."""
    base: Annotated[Literal[4, 7], BeforeValidator(_to_number)] = 4
    """Pixels per side where the generator starts; 7 leads to 14, 28, 56 px and so on."""
    width: Count | None = None
    """Multiplies every number of feature maps."""
    latents: Count | None = None
    """Length of z. For biggan, a multiple of its blocks plus one: skip-z splits it among them."""
    embedding: Count | None = None
    """Length of the class embedding, which all blocks share (biggan, biggan-deep)."""
    attention: int | None = None
    """Resolution after which self-attention stands; null for none (sagan, biggan, biggan-deep)."""
    spectral_norm: bool | None = None
    """Divide weights by their largest singular values (sagan, biggan, biggan-deep)."""
    mapping_layers: Count | None = None
    """Number of dense layers from z to w (stylegan)."""


class Phase(Section):
    """One rung of the curriculum: fade it in, then hold it."""

    resolution: int = Field(ge=4)
    """Pixels per side."""
    fade_images: int = Field(default=0, ge=0)
    """Images over which the rung fades in; 0 in the first phase."""
    hold_images: int = Field(ge=1)
    """Images at full strength after the fade."""
    batch: Count
    """Global batch of one discriminator step, over all workers."""
    lr_scale: float = Field(default=1.0, gt=0)
    """Multiplies both learning rates in this phase."""


class TrainingSettings(Section):
    """The step."""

    loss: Literal["hinge", "wgan", "lsgan", "non-saturating", "relativistic"] = "hinge"
    """Adversarial loss; relativistic compares each fake image with a real one."""
    r1: ScheduledWeight = 0.0
    """γ of R1, which adds γ/2 times the squared gradient of the logits at real images; 0 for none."""
    r1_every: Count = 1
    """Apply it at one discriminator step in this many, with its weight multiplied by this number."""
    r2: ScheduledWeight = 0.0
    """γ of R2, which is R1 at fake images; 0 for none."""
    r2_every: Count = 1
    """Apply it at one discriminator step in this many, with its weight multiplied by this number."""
    slope_sigma: float = Field(default=0.0, ge=0)
    """Size of the noise over which R1 and R2 take differences, not second derivatives; 0: exact ones."""
    gradient_penalty: float = Field(default=0.0, ge=0)
    """λ of the gradient penalty, taken at images between real and fake; 0 for none."""
    gradient_penalty_target: float = Field(default=1.0, gt=0)
    """The norm that the gradient penalty pulls gradients towards."""
    gradient_penalty_every: Count = 1
    """Apply it at one discriminator step in this many, with its weight multiplied by this number."""
    drift: float = Field(default=0.0, ge=0)
    """Weight of the squared logits of real images; it keeps the logits of wgan near 0."""
    orthogonal: float = Field(default=0.0, ge=0)
    """Weight of orthogonal regularisation of the generator, without its embeddings; 0 for none."""
    augment: Literal["none", "diffaugment", "ada"] = "none"
    """How images are changed before the discriminator sees them, real and generated: for few images."""
    augment_p: ScheduledShare | None = None
    """Chance of each change; null: always (diffaugment), or as high as augment_target asks (ada)."""
    augment_target: float = Field(default=0.6, gt=0, lt=1)
    """Mean sign of the logits of real images that ada goes for; a lower one augments more."""
    augment_images: Images = 500_000
    """Images in which ada may go from never to always."""
    labels: Literal["even", "data"] = "even"
    """Generated images have all classes as often (as for BigGAN), or as the data has them (ProGAN)."""
    style_mixing: float = Field(default=0.0, ge=0, le=1)
    """Share of generated images that mix two styles (stylegan)."""
    w_average_half_life_images: Images = 5000
    """Half-life of the running average of w, towards which truncation pulls (stylegan)."""
    d_steps: Count = 1
    """Discriminator steps in a cycle, each on its own batch, before one generator step."""
    lr_generator: ScheduledRate
    """Adam's learning rate."""
    lr_discriminator: ScheduledRate
    """Adam's learning rate."""
    adam_beta1: float = Field(default=0.0, ge=0, lt=1)
    """Adam's decay of the mean gradient."""
    adam_beta2: ScheduledDecay = 0.999
    """Adam's decay of the mean squared gradient."""
    adam_eps: float = Field(default=1e-6, gt=0)
    """Adam's epsilon, added to the root of the mean squared gradient."""
    reset_adam: bool = False
    """Forget Adam's averages where a rung begins, and where its fade ends."""
    ema_half_life_images: ScheduledHalfLife
    """Half-life of the running average of the generator's weights."""
    ema_rampup: float = Field(default=0.05, gt=0)
    """The half-life is at most this share of the clock, so that early weights are soon forgotten."""
    norm_group: int | None = Field(default=None, ge=2)
    """Images that batch norm measures together; null for the whole batch."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """Precision of the forwards. auto is bf16 if the machine has units for it, else fp32."""
    channels_last: bool = True
    """Memory layout; it changes only the speed."""
    capture: bool = True
    """On GPUs, launch a cycle as one CUDA graph; it changes only the speed."""
    compile: bool = False
    """Compile the networks, in some minutes for each phase; it changes only the speed, and rounding."""
    tf32: bool = True
    """On GPUs, multiply fp32 in TF32, but for penalties; false multiplies all in full precision."""
    gradient_compression: Literal["none", "bf16"] = "none"
    """How workers exchange gradients: as they are, or rounded to bf16, which is half as much to send."""
    fused_resampling: bool = True
    """Enlarge or halve images inside the convolution; it changes only the speed."""

    def at(self, clock: int) -> Scheduled:
        """The values at this clock of what may have a schedule."""
        values: dict[str, Any] = {f.name: at(getattr(self, f.name), clock) for f in fields(Scheduled)}
        return Scheduled(**values)


class DataSettings(Section):
    """The shards, and how they are read."""

    url: Address
    """Folder or s3:// address of shards from `python -m service.pack` or any webdataset tool."""
    index_url: Address | None = None
    """Folder or s3:// address of the index, if data.url is read-only; the default is data.url."""
    held_out: float | None = Field(default=None, ge=0, lt=1)
    """Share that is never trained on. null takes the index's share, or 0.05 if there is no index yet."""
    image: str | None = Field(default=None, pattern=r"\S")
    """Member to take of samples with several images, such as left.png; null takes the first image."""
    label: str | None = Field(default=None, pattern=r"\S")
    """Field of the samples' .json members that holds their labels; null reads the .cls members."""
    grown: bool = False
    """Let shards join that came after the index was made, and a run go on with them from where it is."""
    flip: bool = False
    """Mirror each image with a chance of one half, drawn anew each time that it is shown."""
    lanes: Count = 64
    """Parallel sequences that an epoch is cut into; the number of workers divides it."""
    window: Count = 64
    """Samples that are read at once, and shuffled among themselves."""
    readers: Count = 4
    """Threads that fetch windows, for each worker."""
    decoders: Count | None = None
    """Processes that decode images, for each worker; the default is scale.cpus on a GPU, else 1."""
    prefetch_bytes: int = Field(default=1 << 29, ge=1 << 20)
    """Most memory for a worker's windows and ready batches."""
    cache_dir: str | None = None
    """Folder on each node where its workers keep what they read; null keeps nothing."""
    cache_bytes: int = Field(default=1 << 36, ge=1 << 20)
    """Most that cache_dir may hold; the least recently used blocks go first."""
    max_bad_samples: int | float = Field(default=0.01, ge=0)
    """Bad samples before the run stops: a share below 1, or a count. Each is replaced and counted."""

    @field_validator("max_bad_samples")
    @classmethod
    def _is_share_or_count(cls, value: float) -> int | float:
        if value >= 1 and value != int(value):
            raise ValueError("neither a share below 1 nor a whole number; write 0.01 or 100")
        return int(value) if value >= 1 else value

    def allowed_bad(self, samples: int) -> int:
        """How many of so many samples may be bad."""
        limit = self.max_bad_samples
        return int(limit * samples) if limit < 1 else int(limit)

    @property
    def index_address(self) -> str:
        """Where the index lies."""
        return self.index_url or self.url


class ScaleSettings(Section):
    """Where it runs."""

    workers: str | int = 1
    """A number of workers, or a range such as 2:8; the largest number that fits is taken."""
    gpu: bool = False
    """Give each worker a GPU, with NCCL; otherwise train on CPUs, with gloo."""
    cpus: Count = 1
    """CPUs that each worker reserves, and threads that it computes with."""
    device_batch: Literal["auto"] | Count = "auto"
    """Most images of a worker's share that go through at a time; auto: as many as the memory holds."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Operations a second of a device, of which mfu is the share used; null: a GPU's peak in bf16."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts in a row without a new checkpoint before the run is given up."""
    group_timeout_s: int = Field(default=300, ge=10)
    """How long a worker waits for the others before it considers them dead."""
    hang_s: float | None = Field(default=None, gt=0)
    """How long a worker may take over one thing; null: a minute, or 5 times the slowest of late."""
    patience_s: float = Field(default=0, ge=0)
    """How long a start waits for an autoscaler to bring room for the largest number of workers."""
    grow_after_s: float = Field(default=60, ge=0)
    """How long there must be room for more workers before a checkpoint lets the group grow."""

    @field_validator("workers")
    @classmethod
    def _is_range(cls, value: str | int) -> str | int:
        low, _, high = str(value).partition(":")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low)):
            raise ValueError("not a number of workers or a range; write 4 or 2:8")
        return int(value) if str(value).isdigit() else value

    @property
    def worker_range(self) -> range:
        """The counts that the setting names."""
        low, _, high = str(self.workers).partition(":")
        return range(int(low), int(high or low) + 1)

    @property
    def most_at_once(self) -> int | None:
        """The number that `device_batch` gives, if any."""
        return None if self.device_batch == "auto" else self.device_batch


class CheckpointSettings(Section):
    """Which checkpoints are made and kept."""

    every_images: Images
    """Interval between checkpoints; one more is made at the end."""
    every_s: float | None = Field(default=None, gt=0)
    """Also save at a look once the last checkpoint is this old; rewinds never go back to such a one."""
    keep: Count = 3
    """How many of the newest checkpoints stay."""
    keep_best: int = Field(default=1, ge=0)
    """How many of the best-scored checkpoints stay, beside the newest and the last healthy one."""


Amendment = dict[str, float | str]


class CollapseSettings(Section):
    """What to do when the training collapses. It is judged at every tracking.every_images."""

    action: Literal["alert", "protect", "rewind", "stop"] = "rewind"
    """alert only; protect the last healthy checkpoint; rewind to it, amended; or stop with exit 3."""
    max_rewinds: int = Field(default=3, ge=0)
    """Rewinds of a run before a collapse ends it with exit code 3."""
    amendments: list[Amendment] = [
        {"training.lr_generator": "x0.5", "training.lr_discriminator": "x0.5"},
        {"training.lr_generator": "x0.5", "training.lr_discriminator": "x0.5", "training.r1": 1.0},
    ]
    """What each rewind in turn changes; the last entry repeats. Give a value, or "x0.5" for half."""
    overfit_amendment: Amendment | None = None
    """What a rewind for d_overfit changes instead; null augments more, where images are augmented."""


class EvaluationSettings(Section):
    """How checkpoints are scored. The training never waits for scores; they decide which is the best."""

    every_images: Images | None = None
    """Score the first checkpoint after each such interval, and the last one; null scores none."""
    images: int = Field(default=2000, ge=10)
    """How many images to generate, and at most how many held-out and training images to compare with."""
    features: FeaturesName = "efficientnet_lite0"
    """Network whose features are compared; only inception gives FID, KID and IS as published."""
    weights: Address | None = None
    """File or URL of inception's weights; efficientnet_lite0 needs none."""
    reference: Reference = "held_out"
    """Compare with held_out or training images, or with a .npz file of mu and sigma, which gives fd."""
    scores: list[ScoreName] = Field(default=["fd"], min_length=1)
    """Scores to compute; `evaluation.best` has their names, docs/scores.md their meaning."""
    attributes: Address | None = None
    """CSV file of attributes of the data's images, for separability; null takes the classes."""
    best: RankingName = "fd"
    """The score that decides which checkpoint is the best."""
    cpus: float = Field(default=0, ge=0)
    """CPUs that the scorer reserves; 0 takes what the training leaves free."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that the scorer reserves; 0 scores on a CPU."""
    niceness: int = Field(default=19, ge=0, le=19)
    """Niceness of the scorer: 19 gives way to everything else on its node, 0 to nothing."""
    wait_s: float = Field(default=600, ge=0)
    """How long the end of a run waits for the last score."""


class TrackingSettings(Section):
    """What people see of the run: MLflow, pictures, Prometheus."""

    uri: Address | None = None
    """Address of MLflow's tracking server; the default is a database in run.dir."""
    experiment: str = "gan-training"
    """Name of MLflow's experiment."""
    every_images: Images
    """Interval between points of the curves."""
    pictures_every_images: Images
    """Interval between sample grids."""
    panel_rows: Count = 10
    """Samples of each class in a grid."""
    panel_classes: Count = 10
    """At most this many classes in a grid."""
    prometheus_port: int = Field(default=0, ge=0, lt=65536)
    """Port of /metrics on the driver's node; 0 takes a free one and prints it."""
    prometheus_host: str = "127.0.0.1"
    """Address that /metrics listens on."""


class StorageSettings(Section):
    """Storage: retries and time-outs."""

    retry_s: float = Field(default=120, ge=0)
    """How long to retry failing reads and writes before the run stops."""
    timeout_s: float = Field(default=60, gt=0)
    """How long an S3 request may be silent, or take for one MiB, before it is abandoned and repeated."""

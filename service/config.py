"""The typed configuration of a run: sections, bounds, presets, and the command line over them.

Presets stand in `presets/<family>.yaml`; a flag such as `--run.images 20000` overrides one value.
Nothing is read from the environment.
"""

import contextlib
import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

import models
from service.errors import UsageError

PRESETS = Path(__file__).parent / "presets"

Count = Annotated[int, Field(ge=1)]
Images = Annotated[int, Field(ge=1)]
"""Real images shown to the discriminator, over all workers."""
Rate = Annotated[float, Field(gt=0, le=1)]


def _to_number(value: Any) -> Any:
    """Flags come as text, which a literal number would refuse."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Run(Section):
    """What is run and where it is kept."""

    dir: str = Field(min_length=1)
    """Folder or s3:// address of checkpoints, pictures, MLflow's database; a second start resumes."""
    images: Images | None = None
    """Stop after this many real images; the default is the end of the phase table."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Key of every random draw, of the data order and of the first weights."""


class Model(Section):
    """The two networks; what is null has its family's own default, or is nothing that it knows."""

    family: Literal["dcgan", "sagan", "biggan", "biggan-deep", "progan", "stylegan", "mnist-pggan"]
    """Which lineage."""
    resolution: int = Field(ge=7, le=1024)
    """Pixels of a side at the last rung."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_to_number)]
    """1 for gray images, 3 for RGB."""
    classes: Count | None = None
    """Number of labels, which go from 0 to classes − 1; null trains without labels."""
    base: Annotated[Literal[4, 7], BeforeValidator(_to_number)] = 4
    """Pixels of a side where the generator starts: 7 makes 14, 28, 56 px and so on."""
    width: Count | None = None
    """Multiplies every channel table."""
    latents: Count | None = None
    """Length of z; for biggan a multiple of its blocks plus one, among which skip-z shares it out."""
    embedding: Count | None = None
    """Length of the class embedding that all blocks share (biggan, biggan-deep)."""
    attention: int | None = None
    """Resolution that self-attention follows; null for none (sagan, biggan, biggan-deep)."""
    spectral_norm: bool | None = None
    """Whether weights are divided by their largest singular values (sagan, biggan, biggan-deep)."""
    mapping_layers: Count | None = None
    """Dense layers from z to w (stylegan)."""


class Phase(Section):
    """One rung of the curriculum: fade it in, then hold it."""

    resolution: int = Field(ge=4)
    """Pixels of a side."""
    fade_images: int = Field(default=0, ge=0)
    """Images over which the rung fades in; 0 in the first phase."""
    hold_images: int = Field(ge=1)
    """Images at full strength after the fade."""
    batch: Count
    """Global batch of one discriminator step, over all workers and accumulation steps."""
    accumulation: Count = 1
    """Micro-batches that a batch is cut into, to fit in memory."""
    lr_scale: float = Field(default=1.0, gt=0)
    """Multiplies both learning rates in this phase."""

    @property
    def micro_batch(self) -> int:
        """Images of one forward, over all workers."""
        return self.batch // self.accumulation


class Training(Section):
    """The step."""

    loss: Literal["hinge", "wgan", "lsgan", "non-saturating"] = "hinge"
    """Adversarial loss."""
    r1: float = Field(default=0.0, ge=0)
    """γ of R1: adds γ/2 times the squared gradient of the logits at real images; 0 for none."""
    r1_every: Count = 1
    """Apply it at one discriminator step of so many, its weight multiplied by as much."""
    gradient_penalty: float = Field(default=0.0, ge=0)
    """λ of the gradient penalty at images between real and fake; 0 for none."""
    gradient_penalty_target: float = Field(default=1.0, gt=0)
    """Norm that the gradient penalty draws gradients to."""
    gradient_penalty_every: Count = 1
    """Apply it at one discriminator step of so many, its weight multiplied by as much."""
    drift: float = Field(default=0.0, ge=0)
    """Weight of the squared logits of real images, which keeps those of wgan near 0."""
    orthogonal: float = Field(default=0.0, ge=0)
    """Weight of orthogonal regularisation of the generator, embeddings left out; 0 for none."""
    style_mixing: float = Field(default=0.0, ge=0, le=1)
    """Share of the generated images that take two styles (stylegan)."""
    w_average_half_life_images: Images = 5000
    """Half-life of the running average of w, which truncation draws towards (stylegan)."""
    d_steps: Count = 1
    """Discriminator steps in a cycle, each on a batch of its own, before one generator step."""
    lr_generator: Rate
    """Adam's learning rate."""
    lr_discriminator: Rate
    """Adam's learning rate."""
    adam_beta1: float = Field(default=0.0, ge=0, lt=1)
    """Adam's decay of the mean gradient."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the mean squared gradient."""
    adam_eps: float = Field(default=1e-6, gt=0)
    """Adam's floor under the root of the mean squared gradient."""
    reset_adam: bool = False
    """Forget Adam's averages where a new rung begins."""
    ema_half_life_images: Images
    """Half-life of the running average of the generator's weights."""
    ema_rampup: float = Field(default=0.05, gt=0)
    """The half-life is at most this share of the images so far, so that the start is forgotten."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """Of the forwards; auto is bf16 where the machine has units for it, else fp32. fp64 is for tests."""
    channels_last: bool = True
    """Memory layout; changes speed alone."""
    fused_resampling: bool = True
    """Enlarge or halve within the convolution; changes speed alone."""


class Data(Section):
    """The shards, and how they are read."""

    url: str = Field(min_length=1)
    """Folder or s3:// address of shards, of `python -m service.pack` or any webdataset tool."""
    index_url: str | None = None
    """Folder or s3:// address of the index, where data.url may only be read; the default is data.url."""
    held_out: float | None = Field(default=None, ge=0, lt=1)
    """Share never trained on; null takes the index's own, and 0.05 where shards have none yet."""
    flip: bool = False
    """Mirror half of the images, drawn anew each time that they are shown."""
    lanes: Count = 64
    """Parallel sequences that an epoch is cut into; worker counts divide it."""
    window: Count = 64
    """Samples of one read, shuffled among themselves."""
    readers: Count = 4
    """Threads of a worker that fetch windows."""
    decoders: Count | None = None
    """Processes of a worker that decode images; the default is scale.cpus on a GPU, else 1."""
    prefetch_bytes: int = Field(default=1 << 29, ge=1 << 20)
    """Most memory that a worker's windows and ready batches may take."""
    cache_dir: str | None = None
    """Folder on each node that keeps what was read, for all workers there; null keeps nothing."""
    cache_bytes: int = Field(default=1 << 36, ge=1 << 20)
    """Most that cache_dir may hold; the least recently used goes first."""
    max_bad_samples: int = Field(default=100, ge=0)
    """Samples that may fail to decode, each replaced and counted, before the run stops."""

    @property
    def index_address(self) -> str:
        """Where the index lies."""
        return self.index_url or self.url


class Scale(Section):
    """Where it runs."""

    workers: str | int = 1
    """A number of workers, or a range such as 2:8, of which the largest that fits is taken."""
    gpu: bool = False
    """One GPU a worker, with NCCL; otherwise CPU, with gloo."""
    cpus: Count = 1
    """CPUs a worker reserves, and the threads that it computes with."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts in a row, without a new checkpoint between them, before the run is given up."""
    group_timeout_s: int = Field(default=300, ge=10)
    """How long a worker waits for the others before it takes them for dead."""

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


class Checkpoint(Section):
    """What is kept to go on from."""

    every_images: Images
    """Interval of checkpoints; one more is made at the end."""
    keep: Count = 3
    """Newest checkpoints that stay."""
    keep_best: int = Field(default=1, ge=0)
    """Checkpoints that stay for their score, beside the newest and the last healthy one."""


Amendment = dict[str, float | str]


class Collapse(Section):
    """What is done when the training falls apart; it is judged at every tracking.every_images."""

    action: Literal["alert", "protect", "rewind", "stop"] = "rewind"
    """Tell; keep the last healthy checkpoint for good; go back to it, amended; or end with exit 1."""
    max_rewinds: int = Field(default=3, ge=0)
    """Rewinds of a run, after which a collapse ends it with exit 1."""
    amendments: list[Amendment] = [
        {"training.lr_generator": "x0.5", "training.lr_discriminator": "x0.5"},
        {"training.lr_generator": "x0.5", "training.lr_discriminator": "x0.5", "training.r1": 1.0},
    ]
    """What each rewind changes, in this order, the last one again; a value, or "x0.5" for half of it."""


class Evaluation(Section):
    """How checkpoints are scored beside the training, which never waits; the score decides the best."""

    every_images: Images | None = None
    """Score the first checkpoint after each such interval, and the last; null scores none."""
    images: int = Field(default=2000, ge=10)
    """Generated images, and most held-out and training images to compare them with."""
    features: Literal["efficientnet_lite0", "inception"] = "efficientnet_lite0"
    """Network whose features are compared; only inception's scores are FID, KID and IS as published."""
    weights: str | None = None
    """File or URL of inception's weights; efficientnet_lite0 brings its own."""
    scores: list[str] = ["fd"]
    """Of fd, kid, is, precision, recall, density, coverage, swd, ms_ssim, memorisation."""
    best: str = "fd"
    """The score that decides which checkpoint is the best."""
    cpus: float = Field(default=0, ge=0)
    """CPUs that it reserves; 0 takes what the training leaves of any node."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that it reserves; 0 scores on a CPU."""
    niceness: int = Field(default=19, ge=0, le=19)
    """Of its threads: 19 computes after all else on its node, 0 as urgently as the training."""
    wait_s: float = Field(default=600, ge=0)
    """How long the end of a run waits for the last score."""


class Tracking(Section):
    """What people see of the run."""

    uri: str | None = None
    """MLflow's tracking server; the default is a database in run.dir."""
    experiment: str = "gan-training"
    """MLflow's experiment."""
    every_images: Images
    """Interval of the curves."""
    pictures_every_images: Images
    """Interval of the sample grids."""
    panel_rows: Count = 10
    """Samples of each class in a grid."""
    panel_classes: Count = 10
    """Most classes in a grid."""
    prometheus_port: int = Field(default=0, ge=0, lt=65536)
    """Port of /metrics on the driver's node; 0 takes a free one, which is printed."""
    prometheus_host: str = "127.0.0.1"
    """Address that /metrics listens on."""


class Storage(Section):
    """How storage is met."""

    retry_s: float = Field(default=120, ge=0)
    """How long failing reads and writes are tried again before the run stops."""
    timeout_s: float = Field(default=60, gt=0)
    """How long a request to S3 may be silent, or take for a MiB, before it is given up and repeated."""


class Config(BaseSettings):
    """Everything that a run is made of."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, cli_avoid_json=True
    )

    run: Run
    model: Model
    phases: list[Phase] = Field(min_length=1)
    """The curriculum, rung by rung; on the command line as JSON."""
    training: Training
    data: Data
    scale: Scale = Scale()
    checkpoint: Checkpoint
    collapse: Collapse = Collapse()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking
    storage: Storage = Storage()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Presets and flags alone: a variable DATA in the environment is none of ours."""
        return (init_settings,)

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        _check_phases(self)
        try:
            group = self.shape.batch_group
        except ValueError as error:
            told = f"model.{error}".replace("model.first resolution", "phases[0].resolution")
            raise ValueError(told) from error
        for i, phase in enumerate(self.phases):
            if phase.micro_batch % group:
                raise ValueError(
                    f"phases[{i}].batch: {phase.batch} / accumulation {phase.accumulation} is not in"
                    f" whole groups of {group}, which {self.model.family}'s discriminator compares"
                )
        if self.training.style_mixing and self.model.family != "stylegan":
            raise ValueError(
                f"training.style_mixing: {self.training.style_mixing}, but {self.model.family} has no"
                " styles; set 0, or take stylegan"
            )
        if not self.worker_counts:
            raise ValueError(_no_worker_count(self))
        if self.collapse.action == "rewind" and not self.collapse.amendments:
            raise ValueError(
                "collapse.amendments: names nothing that a rewind could change; give a list such as"
                ' [{"training.lr_generator": "x0.5"}], or set collapse.action to alert, protect or stop'
            )
        amended = self
        for i, amendment in enumerate(self.collapse.amendments):
            where = f"collapse.amendments[{i}]"
            amended = amend(amended, resolve(amended, amendment, where), where)
        return self

    @property
    def model_settings(self) -> dict[str, Any]:
        """What `models.build` takes, beside the family."""
        settings = self.model.model_dump(exclude={"family"}, exclude_none=True)
        return settings | {"first_resolution": self.phases[0].resolution}

    @property
    def shape(self) -> models.Shape:
        """The networks' own configuration, the family's defaults filled in."""
        return models.configure(self.model.family, **self.model_settings)

    @property
    def worker_counts(self) -> list[int]:
        """Allowed numbers of workers: those that all `shared_sizes` are multiples of."""
        shared = self.shared_sizes
        possible = range(self.scale.worker_range.start, min(self.scale.worker_range[-1], *shared) + 1)
        return [n for n in possible if all(size % n == 0 for size in shared)]

    @property
    def shared_sizes(self) -> list[int]:
        """What is shared out evenly among the workers: lanes, and the groups of each micro-batch."""
        group = self.shape.batch_group
        return [self.data.lanes, *sorted({phase.micro_batch // group for phase in self.phases})]


def _check_phases(config: Config) -> None:
    for i, phase in enumerate(config.phases):
        if phase.batch % phase.accumulation:
            raise ValueError(
                f"phases[{i}].accumulation: {phase.accumulation} does not divide"
                f" batch {phase.batch}; change either"
            )
        before = config.phases[i - 1] if i else None
        if before is None:
            if phase.fade_images:
                raise ValueError("phases[0].fade_images: nothing to fade from; set 0")
        elif phase.resolution not in (before.resolution, before.resolution * 2):
            raise ValueError(
                f"phases[{i}].resolution: {phase.resolution} does not follow {before.resolution};"
                f" take {before.resolution * 2}, or {before.resolution} again"
            )
        elif phase.resolution == before.resolution and phase.fade_images:
            raise ValueError(f"phases[{i}].fade_images: the rung does not change; set 0")
    if config.phases[-1].resolution != config.model.resolution:
        raise ValueError(
            f"model.resolution: {config.model.resolution}, but the last phase trains at"
            f" {config.phases[-1].resolution}; make them equal"
        )


def _no_worker_count(config: Config) -> str:
    sizes = config.shared_sizes
    fitting = [n for n in range(1, min(sizes) + 1) if all(size % n == 0 for size in sizes)]
    group = config.shape.batch_group
    per_group = f" / groups of {group}" if group > 1 else ""
    return (
        f"scale.workers: {config.scale.workers} does not divide data.lanes {sizes[0]} and every"
        f" phase's batch / accumulation{per_group} {sizes[1:]}; take one of {fitting},"
        " or change the batch"
    )


# Amendments ---------------------------------------------------------------------------------------

# Settings that a step reads anew: a rewind may change them.
AMENDABLE = (
    "training.lr_generator",
    "training.lr_discriminator",
    "training.d_steps",
    "training.r1",
    "training.r1_every",
    "training.gradient_penalty",
    "training.gradient_penalty_every",
    "training.drift",
    "training.orthogonal",
    "training.style_mixing",
    "training.ema_half_life_images",
)


def resolve(config: Config, amendment: Amendment, where: str) -> dict[str, float]:
    """The values that an amendment gives settings of `config`; ValueError, naming `where`."""
    if not amendment:
        raise ValueError(f"{where}: names nothing; give a setting, of {', '.join(AMENDABLE)}")
    values = {}
    for key, change in amendment.items():
        if key not in AMENDABLE:
            known = f"an amendment may change {', '.join(AMENDABLE)}"
            hint = suggest(key, AMENDABLE, otherwise=known)
            raise ValueError(f"{where}: {key} cannot be amended; {hint}")
        before = getattr(config.training, key.partition(".")[2])
        try:
            values[key] = _amended(before, change)
        except (ValueError, OverflowError) as error:
            whole = "a whole number" if isinstance(before, int) else "a value"
            raise ValueError(
                f"{where}: {key}: {change!r} is neither {whole} nor a factor such as x0.5"
            ) from error
    return values


def _amended(before: float, change: float | str) -> float:
    """The value that a setting has after a change; whole where it was whole, by a factor rounded."""
    told = str(change)
    value = before * float(told[1:]) if told.startswith("x") else float(told)
    if not math.isfinite(value):
        raise ValueError("not finite")
    if not isinstance(before, int):
        return value
    if not told.startswith("x") and value != round(value):
        raise ValueError("not whole")
    return round(value)


def amend(config: Config, values: dict[str, float], where: str = "an amendment") -> Config:
    """The configuration with these values; ValueError, naming `where`, if they do not hold."""
    content = config.model_dump() | {"collapse": {"action": "alert", "amendments": []}}
    for key, value in values.items():
        content["training"] |= {key.partition(".")[2]: value}
    try:
        return Config(**content)
    except ValidationError as error:
        raise ValueError(explain(error, where)) from error


# From presets and flags ---------------------------------------------------------------------------


def preset_names() -> list[str]:
    """All presets, by family."""
    return [name for file in sorted(PRESETS.glob("*.yaml")) for name in _read_yaml(file)]


def load_preset(name: str) -> dict[str, Any]:
    """The values of a preset; UsageError names those there are."""
    for file in sorted(PRESETS.glob("*.yaml")):
        presets = _read_yaml(file)
        if name in presets:
            return presets[name]
    raise UsageError(f"--preset {name}: no such preset; choose of {', '.join(preset_names())}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{file}: holds no mapping of sections")
    return content


def parse(arguments: Sequence[str], program: str, description: str) -> tuple[Config, bool]:
    """The configuration of a command line and whether `--print-config` asked for it alone.

    Raises UsageError, with key, value and remedy; `--help` prints and exits 0.
    """
    arguments, preset, file, show = _take_own_flags(arguments)
    if "--help" in arguments or "-h" in arguments:
        _print_help(program, description)
    values: dict[str, Any] = {}
    origin = "the command line"
    if preset:
        values, origin = load_preset(preset), f"preset {preset}"
    elif file:
        values, origin = _read_yaml(Path(file)), file
    elif not arguments:
        raise UsageError(f"nothing to run: give --preset NAME, of {', '.join(preset_names())}")
    _check_flags(arguments)
    try:
        source = _cli_source(program)(args=list(arguments))
        config = Config(_cli_settings_source=source, **values)
    except ValidationError as error:
        raise UsageError(explain(error, origin)) from error
    except (SettingsError, ValueError) as error:
        raise UsageError(
            f"the command line cannot be read: {error}; see python -m {program} --help"
        ) from error
    return config, show


def _take_own_flags(
    arguments: Sequence[str],
) -> tuple[list[str], str | None, str | None, bool]:
    rest, own = take_flags(arguments, {"--preset": "a name", "--config": "a name"})
    if len(own) == 2:
        raise UsageError("--preset and --config: give one of them")
    others = [argument for argument in rest if argument.partition("=")[0] != "--print-config"]
    return others, own.get("--preset"), own.get("--config"), len(others) < len(rest)


def take_flags(arguments: Sequence[str], wanted: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The other arguments, and the values of the wanted flags; `wanted` says what follows each."""
    rest: list[str] = []
    taken: dict[str, str] = {}
    pending = list(arguments)
    while pending:
        flag, equals, value = pending.pop(0).partition("=")
        if flag not in wanted:
            rest.append(flag + equals + value)
        elif not equals and not pending:
            raise UsageError(f"{flag}: {wanted[flag]} follows it")
        else:
            taken[flag] = value if equals else pending.pop(0)
    return rest, taken


def _cli_source(program: str) -> CliSettingsSource[Any]:
    return CliSettingsSource(
        Config,
        cli_prog_name=f"python -m {program}",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="null",
        cli_exit_on_error=False,
    )


def _print_help(program: str, description: str) -> None:
    print(f"{description}\n\nusage: python -m {program} --preset NAME [--section.key VALUE …]\n")
    print(f"  --preset NAME     one of {', '.join(preset_names())}")
    print("  --config FILE     a YAML file with the same sections, instead of a preset")
    print("  --print-config    print the resolved configuration and exit\n")
    for key, (kind, default, about) in describe(Config).items():
        print(f"  --{key} ({kind}; {default})\n      {about}")
    own = " --space space.yaml" if program == "service.sweep" else ""
    print(f"\nexample: python -m {program} --preset digits{own} --run.dir runs/mine --scale.workers 2")
    sys.exit(0)


def describe(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, str, str]]:
    """Every key of a configuration, with its type, its default and what it means."""
    rows: dict[str, tuple[str, str, str]] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows |= describe(kind, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"default {json.dumps(field.default)}"
        rows[prefix + name] = (_type_name(kind), default, field.description or "")
    return rows


def _type_name(kind: Any) -> str:
    """A type as people write it: `int`, `str | null`, `list`."""
    arguments = get_args(kind)
    if get_origin(kind) in (Annotated, list):
        return "list" if get_origin(kind) is list else _type_name(arguments[0])
    if arguments:
        return " | ".join(_type_name(argument) for argument in arguments)
    if kind is type(None):
        return "null"
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _check_flags(arguments: Sequence[str]) -> None:
    known = list(describe(Config))
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag[2:] not in (*known, *Config.model_fields):
            raise UsageError(f"{flag}: no such setting; {suggest(flag[2:], known, '--')}")
        if not flag.startswith("-") and argument is arguments[0]:
            raise UsageError(f"{argument}: a setting is written --section.key VALUE")


def suggest(
    key: str, known: Sequence[str], prefix: str = "", otherwise: str = "--help lists them all"
) -> str:
    """The known name that is closest, as advice; `otherwise` where none is close."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return otherwise


def explain(error: ValidationError, origin: str) -> str:
    """Pydantic's findings as lines `key: value: what is wrong; remedy`."""
    lines = []
    known = list(describe(Config))
    for finding in error.errors():
        key = ".".join(str(part) for part in finding["loc"] if not str(part).startswith("constrained"))
        value = finding.get("input")
        match finding["type"]:
            case "extra_forbidden":
                plain = [k.split(".")[-1] for k in known] + [*Phase.model_fields]
                hint = suggest(key, known) if key in known else suggest(key.split(".")[-1], plain)
                lines.append(f"{key}: {value!r}: no such setting; {hint}")
            case "missing":
                remedy = f"set --{key} or add it to {origin}" if key in known else f"add it to {origin}"
                lines.append(f"{key}: not given; {remedy}")
            case "value_error" if not key:
                lines.append(str(finding["ctx"]["error"]))
            case _:
                told = finding["msg"].removeprefix("Value error, ")
                lines.append(f"{key}: {value!r}: {told}{_about(key)}")
    return f"the configuration from {origin} does not hold:\n  " + "\n  ".join(dict.fromkeys(lines))


def _about(key: str) -> str:
    rows = describe(Config)
    if key in rows:
        kind, default, about = rows[key]
        return f" ({kind}; {default}. {about})"
    return ""


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, in the order of the sections."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


# The same run, again ------------------------------------------------------------------------------

# What changes where a run goes and how it is kept, but not one number of its training.
MAY_DIFFER = (
    "run.dir",
    "run.images",
    "scale.",
    "tracking.",
    "storage.",
    "checkpoint.",
    "collapse.",
    "evaluation.",
    "data.index_url",
    "data.readers",
    "data.decoders",
    "data.prefetch_bytes",
    "data.cache_",
    "data.max_bad_samples",
)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as `section.key` to value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(before: dict[str, Any], now: Config) -> list[str]:
    """Lines that name the values which a resumed run may not change, and both of them."""
    with contextlib.suppress(ValidationError):
        before = Config(**before).model_dump()  # settings newer than the run have their defaults
    old, new = flatten(before), flatten(now.model_dump())
    return [
        f"{key}: the run was started with {old.get(key)!r}, now it is {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)
    ]

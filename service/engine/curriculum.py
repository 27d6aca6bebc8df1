"""Stage, batch and rates at each clock: pure functions of configuration and clock."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from models import Stage
from service.config import Config, Phase
from service.config.vocabulary import PAIRED_LOSSES


@dataclass(frozen=True)
class Span:
    """A phase's fade or hold, or a part of it: images [start, end), in whole cycles of one kind.

    The whole fade or hold is images [whole_start, whole_end). `turns` is True where a fade begins or
    ends, or a rung without one, and for the first span. The last `generator_images` of a cycle are those
    that the generator's step compares with its own.
    """

    start: int
    end: int
    whole_start: int
    whole_end: int
    resolution: int
    fading: bool
    batch: int
    lr_scale: float
    cycle_images: int
    generator_images: int
    turns: bool

    @property
    def name(self) -> str:
        """A name for people: "fade to 16 px", "hold 16 px"."""
        return f"{'fade to' if self.fading else 'hold'} {self.resolution} px"


@dataclass(frozen=True)
class Cycle:
    """One cycle on real images [start, end): the discriminator's steps, then the generator's."""

    start: int
    span: Span
    stage: Stage

    @property
    def end(self) -> int:
        """The clock after the cycle."""
        return self.start + self.span.cycle_images

    def batches(self) -> Iterator[int]:
        """The first sample number of each batch of real images."""
        yield from range(self.start, self.end, self.span.batch)

    @property
    def steps(self) -> range:
        """The first sample number of the batch of each of the discriminator's steps."""
        return range(self.start, self.end - self.span.generator_images, self.span.batch)


class Curriculum:
    """The phase table, with fades and holds rounded up to whole cycles.

    `changes` are (clock, d_steps), in force from that clock on, which is a boundary of cycles. Of two
    at one clock the later counts. A change inside a fade or hold cuts it. With `paired`, the generator's
    step has a batch of real images too.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        d_steps: int,
        changes: Sequence[tuple[int, int]] = (),
        paired: bool = False,
    ):
        self._steps = [(0, d_steps), *sorted(changes, key=lambda change: change[0])]
        self._paired = paired
        spans: list[Span] = []
        clock = 0
        for phase in phases:
            for images, fading in ((phase.fade_images, True), (phase.hold_images, False)):
                parts = list(self._parts(clock, images, phase.batch))
                for start, end, cycle in parts:
                    spans.append(
                        Span(
                            start,
                            end,
                            clock,
                            parts[-1][1],
                            phase.resolution,
                            fading,
                            phase.batch,
                            phase.lr_scale,
                            cycle,
                            phase.batch if paired else 0,
                            turns=start == clock and _turns(spans, phase.resolution),
                        )
                    )
                clock = parts[-1][1] if parts else clock
        self.end = clock
        self.spans = tuple(self._held(spans))

    def _parts(self, start: int, images: int, batch: int) -> Iterator[tuple[int, int, int]]:
        """Parts (start, end, images of a cycle) of a stretch of `images`, cut into whole cycles."""
        left = images
        while left > 0:
            cycle = batch * ([steps for at, steps in self._steps if at <= start][-1] + self._paired)
            end = start + -(-left // cycle) * cycle
            end = min([end, *(at for at, _ in self._steps if at > start)])
            yield start, end, cycle
            left -= end - start
            start = end

    def _held(self, spans: list[Span]) -> Iterator[Span]:
        """The spans; changes beyond the table continue the last one."""
        yield from spans[:-1]
        last = spans[-1]
        beyond = max(self._steps[-1][0] + 1, last.end) - last.start
        for start, end, cycle in self._parts(last.start, beyond, last.batch):
            turns = last.turns and start == last.start
            yield replace(last, start=start, end=end, cycle_images=cycle, turns=turns)

    def span_at(self, clock: int) -> Span:
        """The span that contains the clock; beyond the table the last one."""
        return next((span for span in self.spans if clock < span.end), self.spans[-1])

    def at(self, clock: int) -> Cycle:
        """The cycle that begins at `clock`; ValueError if none does."""
        span = self.span_at(clock)
        if (clock - span.start) % span.cycle_images:
            raise ValueError(f"no cycle begins at {clock} images: {span}")
        whole = span.whole_end - span.whole_start
        alpha = (clock - span.whole_start) / whole if span.fading else 1.0
        return Cycle(clock, span, Stage(span.resolution, alpha))

    def containing(self, clock: int) -> Cycle:
        """The cycle that contains the clock."""
        span = self.span_at(clock)
        return self.at(clock - (clock - span.start) % span.cycle_images)

    def batch_start(self, number: int) -> int:
        """The clock at which the batch `number` of real images begins, counted from 0."""
        for span in self.spans[:-1]:
            batches = (span.end - span.start) // span.batch
            if number < batches:
                return span.start + number * span.batch
            number -= batches
        return self.spans[-1].start + number * self.spans[-1].batch

    def before(self, clock: int) -> Cycle:
        """The cycle that ended at `clock`; at 0 the first cycle."""
        return self.at(max(0, clock - self.span_at(max(0, clock - 1)).cycle_images))

    def cycles(self, start: int, stop: int) -> Iterator[Cycle]:
        """All cycles from the clock `start` until it reaches `stop`."""
        clock = start
        while clock < stop:
            cycle = self.at(clock)
            yield cycle
            clock = cycle.end


def _turns(before: Sequence[Span], resolution: int) -> bool:
    """Whether a fade or hold at this resolution, after these spans, begins with other networks."""
    return not before or before[-1].resolution != resolution or before[-1].fading


def curriculum_of(
    config: Config, amendments: Sequence[tuple[int, Mapping[str, float]]] = ()
) -> Curriculum:
    """The phase table with a run's amendments, each (clock, values) in force from that clock on."""
    changes = [(at, int(v["training.d_steps"])) for at, v in amendments if "training.d_steps" in v]
    paired = config.training.loss in PAIRED_LOSSES
    return Curriculum(config.phases, config.training.d_steps, changes, paired)


def due(interval: int, before: int, after: int) -> bool:
    """Whether the clock passed a multiple of `interval` on its way from `before` to `after`."""
    return before // interval != after // interval

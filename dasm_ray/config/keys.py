"""What a run is: one frozen tree of plain values, read from YAML, refused as a whole if any part is contradictory.

Every field says here what it means, and is read somewhere. The digest of a run covers each field that can change a
byte of the result; a field that cannot (how many workers, where they are) is marked ``NOT_IN_RESULT`` and left out.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from typing import Annotated, Literal

import pydantic
from pydantic import Field, StrictBool, StrictStr
from pydantic_core import PydanticCustomError

from dasm_ray.config.matchers import MATCHERS, BaseMatcher, States
from dasm_ray.config.own import code_of, is_own
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.config.shown import INSTEAD, odd_character, secret_in
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain, Tree

NOT_IN_RESULT: Tree = {"affects_result": False}
"""Marks a field that says how or where a run is done, never what comes out."""

ONLY_IF_SET: Tree = {"only_if_set": True}
"""Marks a field that is no part of a digest while it has its default: a key that came later, so older digests stand."""


def _no_bool(value: Plain) -> Plain:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = Annotated[float, pydantic.BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
"""A finite float. YAML reads 5e-3 as text, so text that spells a number is one; true and false are not."""


def one_of(table: Iterable[str]) -> pydantic.AfterValidator:
    """Accepts the names of a table, as it stands when a value is checked."""

    def check(value: str) -> str:
        names = [repr(name) for name in table]
        if value not in table:
            expected = f"{', '.join(names[:-1])} or {names[-1]}"
            raise PydanticCustomError("literal_error", "must be {expected}", {"expected": expected})
        return value

    return pydantic.AfterValidator(check)


Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
"""What there is at least one of, and no more than a million."""

Whole = Annotated[int, Field(ge=1, strict=True)]
"""The same where a million would be too many: the field says by ``le`` how many there may be."""

Natural = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]


def _check_text(value: str) -> str:
    odd, secret = odd_character(value), secret_in(value)
    if odd is not None:
        raise ValueError(f"holds {odd}, a character that cannot be shown; leave it out")
    if secret is not None:
        raise ValueError(f"holds {secret}, which would be kept in the files of the run; {INSTEAD}")
    return value


Text = Annotated[StrictStr, Field(max_length=4096), pydantic.AfterValidator(_check_text)]
"""A name or a place: one line, and no credentials, since it is written down and shown."""


AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _check_strategy(value: str) -> str:
    parts = [] if value == "none" else value.split("_")
    for part in parts:
        if part not in AUGMENTATIONS:
            raise ValueError(
                f"{part!r} is no augmentation: join any of {', '.join(AUGMENTATIONS)} with '_', or say 'none'"
            )
    if len(set(parts)) < len(parts):
        raise ValueError(f"{value!r} names an augmentation twice")
    return value


Strategy = Annotated[StrictStr, pydantic.AfterValidator(_check_strategy)]

NORMS: dict[str, tuple[str, ...]] = {
    "convnet": ("instance", "batch", "group", "none"),
    "resnet18": ("instance", "batch"),
    "vgg11": ("instance", "batch"),
    "alexnet": ("none",),
    "lenet": ("none",),
    "mlp": ("none",),
    "vit": ("none",),  # its own layer normalisation is not a choice
}
"""The normalisations that each architecture takes, its usual one first."""


class Section(pydantic.BaseModel):
    """A part of the configuration: unknown keys refused, values fixed once read."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """The real images."""

    name: Text = Field("digits", description="a named set, or `parquet` or `folder` with `path`")
    path: Text | None = Field(None, description="folder or URI of the files", json_schema_extra=NOT_IN_RESULT)
    download: StrictBool = Field(
        False, description="fetch a torchvision set into `path`", json_schema_extra=NOT_IN_RESULT
    )
    image_size: Whole | None = Field(
        None, le=4096, description="resize and centre-crop to this square; unset: sizes must agree"
    )
    ground: Annotated[StrictStr, Field(pattern=r"^(white|black|#[0-9a-fA-F]{6})$")] | None = Field(
        None,
        description="colour that transparent images are laid on: white (unset), black or #rrggbb",
        json_schema_extra=ONLY_IF_SET,
    )
    zca: Positive | None = Field(None, description="epsilon of ZCA whitening after normalisation; unset: none")
    val_share: Annotated[Number, Field(gt=0, lt=0.5)] = Field(
        0.1, description="share of the training split held out by content hash"
    )
    test_share: Annotated[Number, Field(gt=0, lt=0.5)] = Field(
        0.2, description="the same for sets that come without a test split"
    )


Arch = Annotated[StrictStr, one_of(NORMS)]


class Model(Section):
    """The network that is matched, probed and evaluated."""

    arch: Arch = Field("convnet", description="a row of core.networks.zoo.ARCHITECTURES")
    width: Whole = Field(
        128, le=10_000, description="channels of every block (convnet; the others have widths of their own)"
    )
    depth: Annotated[int, Field(ge=1, le=8, strict=True)] | None = Field(
        None, description="blocks (convnet only); unset: from the image size"
    )
    norm: Literal["instance", "batch", "group", "none"] = Field(
        "instance", description="normalisation of every block; a row of NORMS says which the arch takes"
    )


class OwnModel(Model):
    """A network that the caller names in a command or a call. No file can: the keys are none of `Model`."""

    function: StrictStr = Field(description="MODULE:FUNCTION or timm:NAME")
    code: StrictStr = Field(description="what stands for its code in digests")


class Synthetic(Section):
    """The shape of the synthetic set."""

    ipc: Whole = Field(10, le=100_000, description="stored images per class, over all segments")
    segments: Whole = Field(2, le=1000, description="K: slices of the set that are distilled one after another")
    factor: Whole = Field(1, le=64, description="multi-formation f: a stored image holds f*f training images")
    sizes: tuple[Count, ...] | None = Field(
        None,
        max_length=1000,
        description="stored images per class of each segment, adding up to ipc; unset: equal ones",
        json_schema_extra=ONLY_IF_SET,
    )
    init: Literal["mix", "real", "noise", "loop"] = Field(
        "mix",
        description="mix: f*f downsized real images a slot, drawn from the window; real: one a slot; loop: as mix, but "
        "chosen: nearest to k-means centres, then what probes get wrong and experts right, easiest first",
    )
    group_size: Count | None = Field(None, description="classes that one task works on; unset: all classes in 2 groups")


class TrainRecipe(Section):
    """How a network is trained by SGD."""

    epochs: Count = Field(20, description="passes over the data")
    batch: Count = Field(128, description="samples a step")
    lr: Positive = Field(0.01, description="learning rate")
    momentum: Momentum = Field(0.9, description="of SGD")
    weight_decay: NotNegative = Field(5e-4, description="L2 penalty")
    augment: Strategy = Field("color_crop", description="drawn anew for each sample")
    single: StrictBool = Field(False, description="one augmentation of the strategy a step (DSA's mode S); off: all")
    cutmix: Share = Field(0.5, description="probability of CutMix a step")


class Experts(TrainRecipe):
    """Networks trained on the real data: their snapshots are the states to match at, and they teach the windows."""

    count: Whole = Field(4, le=10_000, description="independent trainings")
    rho: NotNegative = Field(0.0, description="radius of sharpness-aware training (FTD: GSAM, adaptive); 0: plain SGD")
    alpha: NotNegative = Field(0.3, description="GSAM's weight of the perpendicular gradient; only with rho")
    cache: Text | None = Field(
        None, description="folder shared by runs; unset: RUN/experts", json_schema_extra=NOT_IN_RESULT
    )


DEPTH_FROM, DEPTHS = (10, 150, 500), (0.0, 0.25, 0.5, 0.75)
"""From how many images per class on which share of the shallow weights is left out (after PAD, Li et al. 2024)."""


class Matcher(Section):
    """The base matcher: what is compared at which network state, and how the pixels move."""

    name: Annotated[StrictStr, one_of(MATCHERS)] = Field(
        "idc",
        description="gradients: idc, dc, dsa; distributions: dm, cafe; trajectories: mtt, datm (learns soft labels)",
    )
    network: Literal["experts", "train"] | None = Field(
        None,
        description="idc: states from experts (unset), or a net trained on real data inside the loop; "
        "dm: fresh networks (unset), or experts",
    )
    metric: Literal["mse", "l1", "cos"] | None = Field(
        None, description="gradient distance; unset: idc mse, dc and dsa cos"
    )
    relative: StrictBool = Field(
        False,
        description="gradient distance (mse, l1) in units of the real gradient's length",
        json_schema_extra=ONLY_IF_SET,
    )
    deviation: StrictBool = Field(
        False,
        description="dm: match standard deviations of features beside their means",
        json_schema_extra=ONLY_IF_SET,
    )
    depth: StrictBool = Field(
        False,
        description="gradients, trajectories: leave out the first share of what is compared, shallow weights: 0 below "
        "n_k f^2 = 10 images a class, .25 below 150, .5 below 500, then .75",
        json_schema_extra=ONLY_IF_SET,
    )
    augment: Strategy = Field(
        "color_crop_cutout",
        description="gradients: one draw for both batches (dc: none); trajectories: a draw an image",
    )
    rounds: Count = Field(10, description="gradients: tasks per group and segment; trajectories: steps on the set")
    budget: Literal["segment", "set"] = Field(
        "segment",
        description="what `rounds` are of: each segment, or the whole set, whose segments share them by size",
        json_schema_extra=ONLY_IF_SET,
    )
    polish: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0,
        description="last share of all rounds, in which the images of all segments move, half of the states being of a "
        "bank that knows all; 0 where the set's first segments are to be sets of their own",
        json_schema_extra=ONLY_IF_SET,
    )
    networks: Count = Field(10, description="network states (outer iterations) a round")
    steps: Count = Field(1, description="matching steps per class at one network state")
    batch_real: Count = Field(64, description="real images of one class a step")
    frontier_share: Share = Field(
        0.0,
        description="share of a real batch that is of the frontier, what every probe gets wrong and experts right",
        json_schema_extra=ONLY_IF_SET,
    )
    strata: StrictBool = Field(
        False,
        description="real batches hold one image of each of batch_real k-means strata of the class (expert features)",
        json_schema_extra=ONLY_IF_SET,
    )
    batch_syn: Count = Field(128, description="most decoded synthetic images of one class a step")
    lr_img: Positive = Field(5e-3, description="pixel step at ipc 10 and base size, scaled as in IDC")
    scale_lr: StrictBool = Field(True, description="scale lr_img by (ipc/10)(size/base)^2")
    union_rate: StrictBool = Field(
        False,
        description="scale_lr: by the images per class of all segments so far, so one moves as in a set of that size",
        json_schema_extra=ONLY_IF_SET,
    )
    momentum: Momentum = Field(0.5, description="of SGD on the pixels")
    snapshots: tuple[tuple[Natural, Count], ...] = Field(
        ((0, 4),),
        max_length=1000,
        description="experts: range [first, last) of epochs per segment; the last row holds for the rest",
    )
    perturb: NotNegative = Field(
        0.0, description="experts: length of the filter-normalised random step away from a snapshot"
    )
    probe_share: Share = Field(0.0, description="share of network states started from the probe")
    bank_share: Share = Field(
        0.0,
        description="share of network states (of students, for trajectories) from the bank: probes that go on along "
        "all real images; before there are probes, experts",
        json_schema_extra=ONLY_IF_SET,
    )
    context: Literal["alone", "residual", "union"] = Field(
        "alone",
        description="what segment k is matched with: nothing; some of the earlier images, its target all windows so "
        "far; or union: all earlier images, by their number, its target its own window",
    )
    inner_samples: Count = Field(500, description="idc with network train: real samples of one pass between steps")
    inner_steps: Count = Field(10, description="dc, dsa: steps on the synthetic set between matching steps")
    inner_lr: Positive = Field(0.01, description="learning rate of the network inside the loop")


StartRow = Annotated[tuple[Natural, Count, Count], Field(description="first, open, last")]


class Trajectory(Section):
    """Matching of trajectories (mtt, datm): a student's walk on the synthetic set, and how the set learns from it."""

    steps: Count = Field(80, description="N: SGD steps of a student")
    epochs: Count = Field(2, description="M: epochs of the expert that the student is to make up for")
    batch: Count = Field(100, description="synthetic images a student step")
    lanes: Whole = Field(
        1, le=10_000, description="draws of (expert, start) a round, averaged; what can run in parallel"
    )
    starts: tuple[StartRow, ...] = Field(
        ((0, 10, 19),),
        max_length=1000,
        description="start epochs per segment: drawn from [first, open), which widens to [first, last) over "
        "`expansion` rounds; the last row holds for the rest",
    )
    expansion: Count = Field(1000, description="rounds until the range of start epochs is at its widest")
    by_probe: StrictBool = Field(
        True, description="later segments: shift the range to where the experts' loss is the probe's"
    )
    single: StrictBool = Field(True, description="one augmentation of the strategy a step (DSA's mode S); off: all")
    lr_img: Positive = Field(100.0, description="step on the normalised pixels")
    lr_label: Positive = Field(2.0, description="step on the label logits; only datm")
    label_momentum: Momentum = Field(0.9, description="of SGD on the label logits")
    lr_step: NotNegative = Field(1e-5, description="step on the logarithm of the student's rate")
    step_size: Positive = Field(0.01, description="the student's rate to begin with")
    threshold: Positive = Field(1.0, description="draws whose distance is above it are left out")
    patience: Count = Field(200, description="rounds in a row without a usable draw before the run stops")


class Window(Section):
    """Which real samples a segment may see."""

    policy: Literal["all", "quantile", "frontier", "trim", "size"] = Field(
        "frontier", description="a row of core.window.POLICIES"
    )
    w_min: Annotated[Number, Field(gt=0, le=1)] = Field(0.5, description="frontier: least share of a class")
    width: Annotated[Number, Field(gt=0, le=1)] = Field(0.6, description="quantile: width of the sliding window")
    trim: Annotated[Number, Field(ge=0, lt=1)] = Field(0.15, description="trim: share dropped by the last segment")


class Score(Section):
    """The difficulty of real samples under the probe, and the static one under the experts."""

    dynamic: Literal["loss", "el2n", "margin", "grand"] = Field("loss", description="under the probe")
    static: Literal["loss", "el2n", "margin", "grand", "forgetting"] = Field(
        "el2n", description="over expert snapshots"
    )
    early: Count = Field(3, description="expert epochs that the static score is averaged over")
    shards: Whole | None = Field(
        None,
        le=100_000,
        description="tasks a scoring is cut into; unset: one a worker",
        json_schema_extra=NOT_IN_RESULT,
    )
    batch: Count = Field(500, description="samples a forward pass")


class Probe(TrainRecipe):
    """Networks trained on the segments so far; their mean says what is still hard."""

    epochs: Count = Field(200, description="passes over the segments so far")
    batch: Count = Field(64, description="samples a step")
    members: Whole = Field(2, le=1000, description="networks of the ensemble")


ROWS = ("distilled", "initial", "random", *SELECTIONS, "full")
"""Rows that the table can have."""


class Evaluate(TrainRecipe):
    """The fair table: every row trained alike, checkpoints chosen on validation data, the test set read once."""

    epochs: Count = Field(1000, description="passes over the decoded synthetic set; other small sets get as many steps")
    full_epochs: Count | None = Field(None, description="passes over the full data; unset: as many as `epochs`")
    batch: Count = Field(64, description="samples a step")
    seeds: Whole = Field(3, le=10_000, description="trainings per row")
    base_seed: Natural | None = Field(
        None,
        description="where trainings and random rows start; unset: the run's. Runs that set it alike share these rows",
        json_schema_extra=ONLY_IF_SET,
    )
    cache: Text | None = Field(
        None,
        description="folder of outcomes shared by runs; unset: RUN/report/cells",
        json_schema_extra=NOT_IN_RESULT,
    )
    checkpoints: Whole = Field(5, le=10_000, description="times that a training looks at the validation split")
    rows: tuple[Annotated[StrictStr, one_of(ROWS)], ...] = Field(
        ("distilled", "initial", "random", "herding", "k_center", "full"),
        description="rows of the table; of the selection methods the best on validation is shown",
    )


class ArchRecipe(Section):
    """How a network other than the run's own is trained on a set, where it differs from `evaluate`."""

    epochs: Count | None = Field(None, description="as in evaluate")
    batch: Count | None = Field(None, description="as in evaluate")
    lr: Positive | None = Field(None, description="as in evaluate")
    momentum: Momentum | None = Field(None, description="as in evaluate")
    weight_decay: NotNegative | None = Field(None, description="as in evaluate")
    augment: Strategy | None = Field(None, description="as in evaluate")
    cutmix: Share | None = Field(None, description="as in evaluate")


class Runtime(Section):
    """How the work is spread. Only the threads of a worker and compilation touch the result, by rounding."""

    workers: Whole | None = Field(
        None,
        le=10_000,
        description="most workers; unset: one per GPU, else one per core",
        json_schema_extra=NOT_IN_RESULT,
    )
    cpus_per_worker: Whole = Field(1, le=10_000, description="cores, and so torch threads, of one worker")
    gpus_per_worker: NotNegative | None = Field(
        None, le=1000, description="GPUs of one worker, fractions allowed; unset: 1 where there are GPUs"
    )
    memory_per_worker: Positive | None = Field(
        None,
        le=1_000_000,
        description="GiB of a host's memory that one worker is sure of; unset: none is set aside",
        json_schema_extra=NOT_IN_RESULT,
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="where workers compute; unset: on their GPUs, on the CPU where they have none"
    )
    address: Text | None = Field(
        None, description="a running Ray cluster; unset: a local one", json_schema_extra=NOT_IN_RESULT
    )
    compile: StrictBool | None = Field(
        None, description="compile the steps; off: the eager reference; unset: where networks are large enough to pay"
    )
    precision: Literal["float32", "bf16", "auto"] = Field(
        "float32",
        description="what convolutions take in: bf16 rounds their inputs to 8 bits of mantissa and adds up in float32; "
        "auto: bf16 where this machine computes so and the network is large enough to gain",
        json_schema_extra=ONLY_IF_SET,
    )
    max_lost: Count = Field(3, description="times that one task may be lost", json_schema_extra=NOT_IN_RESULT)
    task_minutes: Positive = Field(
        60, le=1_000_000, description="longest time that one task may take", json_schema_extra=NOT_IN_RESULT
    )
    checkpoint_seconds: NotNegative = Field(
        20, le=1e9, description="least time between checkpoints", json_schema_extra=NOT_IN_RESULT
    )
    idle_seconds: NotNegative = Field(
        60,
        le=1e9,
        description="a worker with nothing to do for this long is given back",
        json_schema_extra=NOT_IN_RESULT,
    )
    page: StrictBool = Field(
        True,
        description="draw the page of what is finished, in a few seconds; off: once `dasm-ray report` is asked",
        json_schema_extra=NOT_IN_RESULT,
    )

    def rounding(self, device: str) -> tuple[str | int | bool | None, ...]:
        """What the last bits of a training on ``device`` depend on beside its recipe; a later key counts once set."""
        later = () if self.precision == "float32" else (self.precision,)
        return (self.cpus_per_worker, self.compile, device, *later)


class RunConfig(Section):
    """A run of distillation, whole."""

    name: Annotated[StrictStr, Field(pattern=r"^\w[\w.-]*$", max_length=200)] = Field(
        "run", description="names the default run directory, runs/NAME", json_schema_extra=NOT_IN_RESULT
    )
    seed: Natural = Field(0, description="every random number of the run follows from it")
    data: Data = Data()
    model: Model = Model()
    synthetic: Synthetic = Synthetic()
    experts: Experts = Experts()
    matcher: Matcher = Matcher()
    trajectory: Trajectory = Trajectory()
    window: Window = Window()
    score: Score = Score()
    probe: Probe = Probe()
    evaluate: Evaluate = Evaluate()
    networks: dict[Arch, ArchRecipe] = Field(
        {}, description="how `compare` trains other architectures on a set, by name", json_schema_extra=NOT_IN_RESULT
    )
    runtime: Runtime = Runtime()

    @property
    def evaluation_seed(self) -> int:
        """Where the trainings of a table and its random rows start."""
        return self.seed if self.evaluate.base_seed is None else self.evaluate.base_seed

    @property
    def sizes(self) -> tuple[int, ...]:
        """m_1 to m_K: stored images per class of each segment."""
        synthetic = self.synthetic
        return synthetic.sizes or (synthetic.ipc // synthetic.segments,) * synthetic.segments

    def size_of(self, segment: int) -> int:
        """m_k: stored images per class that move at ``segment`` (from 0); at K, the polish, all of them."""
        return [*self.sizes, self.synthetic.ipc][segment]

    def rounds_of(self, segment: int) -> int:
        """Rounds of ``segment`` (from 0); at K, of the polish, which a single segment has no need of."""
        matcher, segments = self.matcher, self.synthetic.segments
        weights = self.sizes if matcher.budget == "set" else (1,) * segments
        total = matcher.rounds if matcher.budget == "set" else matcher.rounds * segments
        polish = round(matcher.polish * total) if segments > 1 else 0
        if segment == segments:
            return polish
        before, left, whole = sum(weights[:segment]), total - polish, sum(weights)
        return left * (before + weights[segment]) // whole - left * before // whole

    def bank_share_of(self, segment: int) -> float:
        """The share of states from the bank at ``segment`` (from 0); at K, the polish, none.

        Its bank would fit all that moves, so that an image could only gain a gradient by being got wrong.
        """
        return 0.0 if segment == self.synthetic.segments else self.matcher.bank_share

    def probe_share_of(self, segment: int) -> float:
        """The share of states that are probes at ``segment`` (from 0); at K, the polish, none, for the same reason."""
        return 0.0 if segment == self.synthetic.segments else self.matcher.probe_share

    def size_up_to(self, segment: int) -> int:
        """n_k: stored images per class of all segments up to ``segment`` (from 0)."""
        return sum(self.sizes[: segment + 1])

    def images_up_to(self, segment: int) -> int:
        """n_k f^2: images per class that networks are trained with once ``segment`` (from 0) is done."""
        return self.size_up_to(segment) * self.synthetic.factor**2

    def depth_of(self, segment: int) -> float:
        """The first share of what is compared that segment ``segment`` (from 0) leaves out."""
        images = self.images_up_to(segment) if self.matcher.depth else 0
        return DEPTHS[bisect(DEPTH_FROM, images)]

    @property
    def start_factor(self) -> int:
        """A slot starts as so many times so many real images."""
        return self.synthetic.factor if self.synthetic.init in ("mix", "loop") else 1

    @property
    def base(self) -> BaseMatcher:
        """The base matcher's row in the table of matchers."""
        return MATCHERS[self.matcher.name]

    @property
    def is_trajectory(self) -> bool:
        """Whether trajectories are matched: then the set is kept normalised, and a round couples all classes."""
        return self.base.family == "trajectory"

    @property
    def learns_labels(self) -> bool:
        """Whether labels are soft, and learned."""
        return self.base.learns_labels

    @property
    def states(self) -> States:
        """Where the network states come from that the set is matched at."""
        return self.base.states[self.matcher.network]

    @property
    def metric(self) -> str | None:
        """The gradient distance, with the matcher's own default filled in; None where there is no choice of one."""
        return self.matcher.metric or self.base.metric

    @property
    def augment(self) -> str:
        """The matching augmentation; dc is dsa without one."""
        return self.matcher.augment if self.base.augments else "none"

    @property
    def network_name(self) -> str:
        """The architecture, and its normalisation where that is not its usual one: ``convnet``, ``convnet:batch``."""
        arch, norm = self.model.arch, self.model.norm
        return arch if norm == NORMS[arch][0] else f"{arch}:{norm}"

    def under(self, network: str) -> RunConfig:
        """The run as another network evaluates it, by the recipe of `networks`.

        ``ARCH`` or ``ARCH:NORM`` of the table, or the caller's own ``MODULE:FUNCTION`` or ``timm:NAME``.
        """
        if network == self.network_name:
            return self
        arch, _, norm = network.partition(":")
        if arch not in NORMS and is_own(network):
            own = OwnModel(**self.model.model_dump(), function=network, code=code_of(network))
            return self.model_copy(update={"model": own})
        if arch not in NORMS or (norm and norm not in NORMS[arch]):
            known = ", ".join(f"{name}:{norm}" for name, norms in NORMS.items() for norm in norms)
            raise ConfigError(
                f"{network}: there is no such network; take any of {known}, or your own as MODULE:FUNCTION"
            )
        model = self.model.model_copy(update={"arch": arch, "norm": norm or NORMS[arch][0], "depth": None})
        changes = {name: recipe.model_dump(exclude_none=True) for name, recipe in self.networks.items()}
        evaluate = self.evaluate.model_copy(update=changes.get(model.arch, {}))
        return self.model_copy(update={"model": model, "evaluate": evaluate})

    def snapshots_of(self, segment: int) -> tuple[int, int]:
        """The range ``[first, last)`` of expert epochs that segment ``segment`` (from 0) is matched at."""
        rows = self.matcher.snapshots
        return rows[min(segment, len(rows) - 1)]

    def starts_of(self, segment: int) -> tuple[int, int, int]:
        """First, open and last start epoch of segment ``segment`` (from 0), before any shift."""
        rows = self.trajectory.starts
        return rows[min(segment, len(rows) - 1)]

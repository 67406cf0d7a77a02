"""What a run is: one frozen tree of plain values, read from YAML, refused as a whole if any part is contradictory.

Every field says here what it means, and is read somewhere. The digest of a run covers each field that can change a
byte of the result; a field that cannot (how many workers, where they are) is marked ``NOT_IN_RESULT`` and left out.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import pydantic
from pydantic import Field, StrictBool, StrictStr
from pydantic_core import CoreSchema, PydanticCustomError

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


class Told:
    """Tells the JSON schema what a function checks: the keywords that ``say`` gives when the schema is made."""

    def __init__(self, say: Callable[[], Tree]) -> None:
        self._say = say

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: pydantic.GetJsonSchemaHandler) -> Tree:
        return {**handler(core), **self._say()}


def one_of(table: Iterable[str]) -> pydantic.AfterValidator:
    """Accepts the names of a table, as it stands when a value is checked."""

    def check(value: str) -> str:
        names = [repr(name) for name in table]
        if value not in table:
            expected = f"{', '.join(names[:-1])} or {names[-1]}"
            raise PydanticCustomError("literal_error", "must be {expected}", {"expected": expected})
        return value

    return pydantic.AfterValidator(check)


def listed(table: Iterable[str]) -> Told:
    """The same for the JSON schema."""
    return Told(lambda: {"enum": list(table)})


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


PLACES = ("data.path", "data.cache", "experts.cache", "evaluate.cache")
"""Keys that say where files lie, as a URI or a path from the folder of the command."""

GROUP_SIZE = 5
"""Classes of a group where none is said: as many tasks as keep many workers busy, each long enough to be worth it."""

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


def _strategies() -> Tree:
    names = "|".join(AUGMENTATIONS)
    return {"pattern": f"^(none|({names})(_({names}))*)$"}


Strategy = Annotated[StrictStr, pydantic.AfterValidator(_check_strategy), Told(_strategies)]

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

    name: Text = Field(
        "digits",
        description="The set: a named one such as digits, mnist or cifar10, or `folder` or `parquet` for files of "
        "your own at `path`.",
    )
    path: Text | None = Field(
        None,
        description="Folder or URI where the files of the set lie; unset: it is built in, or torchvision fetched it "
        "into ~/.cache/dasm_ray/data.",
        json_schema_extra=NOT_IN_RESULT,
    )
    download: StrictBool = Field(
        False,
        description="Fetch a set that torchvision knows into `path`, or where it is looked for without one.",
        json_schema_extra=NOT_IN_RESULT,
    )
    cache: Text | None = Field(
        None,
        description="Folder or URI where decoded images are kept, sorted by class; unset: ~/.cache/dasm_ray/blocks.",
        json_schema_extra=NOT_IN_RESULT,
    )
    cache_gb: Positive | None = Field(
        None,
        le=1e9,
        description="GB that this folder may hold; sets used longest ago go first; unset: as the disk has room.",
        json_schema_extra=NOT_IN_RESULT,
    )
    image_size: Whole | None = Field(
        None,
        le=4096,
        description="Scale every image and cut its centre to a square of so many pixels a side; unset: images must "
        "agree in size.",
    )
    ground: Annotated[StrictStr, Field(pattern=r"^(white|black|#[0-9a-fA-F]{6})$")] | None = Field(
        None,
        description="Colour that transparent images are laid on: white, black or #rrggbb; unset: white.",
        json_schema_extra=ONLY_IF_SET,
    )
    zca: Positive | None = Field(
        None,
        description="Epsilon of ZCA whitening after normalisation, in units of the variance of the pixels; unset: "
        "images are not whitened.",
    )
    val_share: Annotated[Number, Field(gt=0, lt=0.5)] = Field(
        0.1,
        description="Share of the training images, less those held out for the test, that is held out for validation, "
        "by a hash of their content, where "
        "the set has no such split.",
    )
    test_share: Annotated[Number, Field(gt=0, lt=0.5)] = Field(
        0.2,
        description="Share of the training images that is held out for the test, in the same way, where the set has "
        "no such split.",
    )


Arch = Annotated[StrictStr, one_of(NORMS), listed(NORMS)]


class Model(Section):
    """The network that is matched, probed and evaluated."""

    arch: Arch = Field("convnet", description="The architecture of the network.")
    width: Whole = Field(
        128,
        le=10_000,
        description="Channels of every block of a ConvNet; the other architectures have widths of their own.",
    )
    depth: Annotated[int, Field(ge=1, le=8, strict=True)] | None = Field(
        None,
        description="Blocks of a ConvNet, each of which halves the image; unset: as many as leave 4 pixels a side.",
    )
    norm: Literal["instance", "batch", "group", "none"] = Field(
        "instance",
        description="The normalisation of every block: convnet takes any, resnet18 and vgg11 instance or batch, the "
        "others none.",
    )


class OwnModel(Model):
    """A network that the caller names in a command or a call. No file can: the keys are none of `Model`."""

    function: StrictStr = Field(description="MODULE:FUNCTION or timm:NAME")
    code: StrictStr = Field(description="what stands for its code in digests")


CHOSEN_STARTS = ("loop", "cover")
"""Values of synthetic.init by which the images that a segment starts from are chosen, not drawn."""


class Synthetic(Section):
    """The shape of the synthetic set."""

    ipc: Whole = Field(10, le=100_000, description="Stored images per class, over all segments.")
    segments: Whole = Field(2, le=1000, description="K: how many slices of the set are distilled one after another.")
    factor: Whole = Field(
        1, le=64, description="Multi-formation f: a stored image holds f times f smaller training images."
    )
    sizes: tuple[Count, ...] | None = Field(
        None,
        max_length=1000,
        description="Stored images per class of each segment, which add up to ipc; unset: all segments are equally "
        "large.",
        json_schema_extra=ONLY_IF_SET,
    )
    init: Literal["mix", "real", "noise", "loop", "cover"] = Field(
        "mix",
        description="What images start from: mix, f times f downsized real images of the window; real, one real "
        "image; noise; loop, as mix but chosen: the images nearest to k-means centres, then what probes "
        "get wrong and experts right, easiest first; cover, as loop, but of those what is nearest to their centres.",
    )
    group_size: Count | None = Field(
        None, description="Classes that one task works on; unset: half of them, and five at most."
    )


class TrainRecipe(Section):
    """How a network is trained by SGD."""

    epochs: Count = Field(20, description="Passes over the data.")
    batch: Count = Field(128, description="Images a step.")
    lr: Positive = Field(0.01, description="Learning rate of SGD.")
    momentum: Momentum = Field(0.9, description="Momentum of SGD.")
    weight_decay: NotNegative = Field(5e-4, description="L2 penalty of SGD.")
    augment: Strategy = Field("color_crop", description="Augmentations, drawn anew for each image.")
    single: StrictBool = Field(
        False, description="Draw one augmentation of those a step (DSA's mode S) instead of all."
    )
    cutmix: Share = Field(0.5, description="Probability of CutMix, a step.")

    def steps_over(self, count: int, epochs: int | None = None) -> int:
        """SGD steps of ``epochs`` (unset: the recipe's) passes over ``count`` samples, at least one."""
        return max(1, (epochs or self.epochs) * count // min(self.batch, count))


class Experts(TrainRecipe):
    """Networks trained on the real data: their snapshots are the states to match at, and they teach the windows."""

    count: Whole = Field(4, le=10_000, description="Independent trainings on the real images.")
    rho: NotNegative = Field(
        0.0,
        description="Radius of sharpness-aware training (FTD: adaptive GSAM), relative to each weight; 0: plain SGD.",
    )
    alpha: NotNegative = Field(0.3, description="GSAM's weight of the perpendicular gradient.")
    cache: Text | None = Field(
        None,
        description="Folder or URI of experts that several runs share; unset: RUN/experts.",
        json_schema_extra=NOT_IN_RESULT,
    )


DEPTH_FROM, DEPTHS = (10, 150, 500), (0.0, 0.25, 0.5, 0.75)
"""From how many images per class on which share of the shallow weights is left out (after PAD, Li et al. 2024)."""


class Matcher(Section):
    """The base matcher: what is compared at which network state, and how the pixels move."""

    name: Annotated[StrictStr, one_of(MATCHERS), listed(MATCHERS)] = Field(
        "idc",
        description="The base matcher. Gradients: idc, dc, dsa; distributions: dm, cafe; trajectories: mtt, datm "
        "(learns soft labels).",
    )
    network: Literal["experts", "train"] | None = Field(
        None,
        description="Where network states come from: for idc, experts (unset) or a network trained on real images "
        "inside the loop; for dm, fresh networks (unset) or experts.",
    )
    metric: Literal["mse", "l1", "cos"] | None = Field(
        None, description="Distance of gradients; unset: mse for idc, cos for dc and dsa."
    )
    relative: StrictBool = Field(
        False,
        description="Measure the distance of gradients in units of the real gradient's length.",
        json_schema_extra=ONLY_IF_SET,
    )
    deviation: StrictBool = Field(
        False,
        description="Match the standard deviations of features beside their means.",
        json_schema_extra=ONLY_IF_SET,
    )
    depth: StrictBool = Field(
        False,
        description="Leave out the first share of what is compared, shallow weights: none below 10 images a class "
        "that networks are trained with, a quarter below 150, half below 500, then three quarters.",
        json_schema_extra=ONLY_IF_SET,
    )
    augment: Strategy = Field(
        "color_crop_cutout",
        description="Augmentations while matching: gradients and distributions share one draw between real and "
        "synthetic images, trajectories draw anew for each image; dc has none.",
    )
    rounds: Count = Field(
        10,
        description="Rounds of distillation: tasks per group and segment; for trajectories, steps on a whole segment.",
    )
    budget: Literal["segment", "set"] = Field(
        "segment",
        description="What `rounds` counts: those of each segment, or those of the whole set, which segments share by "
        "their size.",
        json_schema_extra=ONLY_IF_SET,
    )
    polish: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Last share of all rounds, in which the images of all segments move together; leave it at 0 where"
        " the first segments are to be smaller sets of their own.",
        json_schema_extra=ONLY_IF_SET,
    )
    networks: Count = Field(10, description="Network states that one round goes through.")
    steps: Count = Field(1, description="Matching steps per class at one network state.")
    lanes: Whole = Field(
        1,
        le=10_000,
        description="Network states that a group is matched at side by side, whose gradients are averaged; so many "
        "workers can be busy with one group, and the work is so many times as much.",
        json_schema_extra=ONLY_IF_SET,
    )
    batch_real: Count = Field(64, description="Real images of one class a matching step.")
    frontier_share: Share = Field(
        0.0,
        description="Share of a real batch that is drawn from the frontier: images that every probe gets wrong and "
        "experts get right. The rest is drawn as if there were none.",
        json_schema_extra=ONLY_IF_SET,
    )
    strata: StrictBool = Field(
        False,
        description="Fill a real batch with one image of each of `batch_real` k-means strata of its class, by "
        "features of experts.",
        json_schema_extra=ONLY_IF_SET,
    )
    batch_syn: Count = Field(128, description="Most decoded synthetic images of one class a matching step.")
    micro: Count | None = Field(
        None,
        description="Most images that a matching step shows the network at once, so that its memory is bounded and it "
        "takes longer; unset: whole batches.",
        json_schema_extra=ONLY_IF_SET,
    )
    lr_img: Positive = Field(
        5e-3,
        description="Step of SGD on the pixels, which lie in [0, 1]; with scale_lr, the step of a segment of 10 images "
        "a class of the base size.",
    )
    scale_lr: StrictBool = Field(
        True,
        description="Scale lr_img by (images a class of the segment / 10) (size / base)², as IDC does for a whole set; "
        "the base size is 28 or 32 pixels, and 224 above 128 pixels.",
    )
    union_rate: StrictBool = Field(
        False,
        description="Scale lr_img by the images per class of all segments so far, so that an image moves as in a set "
        "of that size.",
        json_schema_extra=ONLY_IF_SET,
    )
    momentum: Momentum = Field(0.5, description="Momentum of SGD on the pixels.")
    snapshots: tuple[tuple[Natural, Count], ...] = Field(
        ((0, 4),),
        max_length=1000,
        description="Epochs [first, last) of the experts' snapshots, last left out, a row for each segment; the last "
        "row holds for the rest.",
    )
    perturb: NotNegative = Field(
        0.0, description="Length of a random step away from a snapshot, in units of each filter's own length."
    )
    probe_share: Share = Field(0.0, description="Share of the network states that begin at the probe.")
    bank_share: Share = Field(
        0.0,
        description="Share of the network states (of students, for trajectories) that are of the bank: probes that go"
        " on along all real images; before there are probes, experts.",
        json_schema_extra=ONLY_IF_SET,
    )
    context: Literal["alone", "residual", "union"] = Field(
        "alone",
        description="What segment k is matched with: alone, nothing; residual, some of the earlier images, its target"
        " all windows so far; union, all earlier images by their number, its target its own window.",
    )
    inner_samples: Count = Field(
        500, description="Real images that the network inside the loop is trained on between two steps."
    )
    inner_steps: Count = Field(
        10, description="Steps of the network inside the loop on the synthetic set between two matching steps."
    )
    inner_lr: Positive = Field(0.01, description="Learning rate of the network inside the loop.")


StartRow = Annotated[tuple[Natural, Count, Count], Field(description="first, open, last")]


class Trajectory(Section):
    """Matching of trajectories (mtt, datm): a student's walk on the synthetic set, and how the set learns from it."""

    steps: Count = Field(80, description="N: SGD steps of a student.")
    epochs: Count = Field(2, description="M: epochs of the expert that a student is to make up for.")
    batch: Count = Field(100, description="Synthetic images a step of a student.")
    lanes: Whole = Field(
        1,
        le=10_000,
        description="Draws of (expert, start epoch) a round, whose gradients are averaged; so many workers can be "
        "busy at once.",
    )
    starts: tuple[StartRow, ...] = Field(
        ((0, 10, 19),),
        max_length=1000,
        description="Start epochs of a segment, a row [first, open, last] for each: drawn from [first, open), which "
        "widens to [first, last) over `expansion` rounds; the last row holds for the rest.",
    )
    expansion: Count = Field(1000, description="Rounds until the range of start epochs is at its widest.")
    by_probe: StrictBool = Field(
        True, description="In later segments, shift the range to where the experts' loss is the probe's."
    )
    single: StrictBool = Field(
        True, description="Draw one augmentation of matcher.augment a step (DSA's mode S) instead of all."
    )
    lr_img: Positive = Field(100.0, description="Step of SGD on the pixels, in normalised units.")
    lr_label: Positive = Field(2.0, description="Step of SGD on the logits of the labels.")
    label_momentum: Momentum = Field(0.9, description="Momentum of SGD on the logits of the labels.")
    lr_step: NotNegative = Field(
        1e-5, description="Step of SGD on the logarithm of the student's learning rate; 0 keeps that rate."
    )
    step_size: Positive = Field(0.01, description="The student's learning rate to begin with.")
    threshold: Positive = Field(
        1.0,
        description="Leave out draws whose distance is above it; 1 is as far from the expert as where the student "
        "began.",
    )
    patience: Count = Field(200, description="Rounds in a row without a usable draw before the run stops.")


WINDOWS = ["all", "quantile", "frontier", "trim", "size"]
"""Names of the rows of core.window.POLICIES."""


class Window(Section):
    """Which real samples a segment may see."""

    policy: Annotated[StrictStr, one_of(WINDOWS), listed(WINDOWS)] = Field(
        "frontier",
        description="Which real images of a class a segment may see, for datm always without those that the experts "
        "get wrong: all; quantile, a sliding range of difficulties; "
        "frontier, what the probe gets wrong and experts right, filled up with the easiest; trim, without"
        " the easiest in the end; size, trimmed by the size of the set so far.",
    )
    w_min: Annotated[Number, Field(gt=0, le=1)] = Field(0.5, description="Least share of a class that a window holds.")
    width: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.6, description="Share of a class that the sliding window holds."
    )
    trim: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.15,
        description="Share of a class, its easiest images, that is dropped by the last segment; earlier ones drop "
        "less, and a lone one none.",
    )


class Score(Section):
    """The difficulty of real samples under the probe, and the static one under the experts."""

    dynamic: Literal["loss", "el2n", "margin", "grand"] = Field(
        "loss", description="Difficulty of a real image under the probe."
    )
    static: Literal["loss", "el2n", "margin", "grand", "forgetting"] = Field(
        "el2n", description="Difficulty of a real image under the snapshots of the experts."
    )
    early: Count = Field(3, description="First epochs of the experts that the static difficulty is averaged over.")
    shards: Whole | None = Field(
        None,
        le=100_000,
        description="Tasks that scoring all real images is cut into; unset: two for each worker.",
        json_schema_extra=NOT_IN_RESULT,
    )
    batch: Count = Field(500, description="Images a forward pass.")


class Probe(TrainRecipe):
    """Networks trained on the segments so far; their mean says what is still hard."""

    epochs: Count = Field(200, description="Passes over the segments so far.")
    batch: Count = Field(64, description="Images a step.")
    members: Whole = Field(2, le=1000, description="Networks of the ensemble, whose mean is the probe.")


ROWS = ("distilled", "initial", "random", *SELECTIONS, "full")
"""Rows that the table can have."""


class Evaluate(TrainRecipe):
    """The fair table: every row trained alike, checkpoints chosen on validation data, the test set read once."""

    epochs: Count = Field(
        1000, description="Passes over the decoded synthetic set; the other small sets get as many steps."
    )
    full_epochs: Count | None = Field(None, description="Passes over the full data; unset: as many as `epochs`.")
    batch: Count = Field(64, description="Images a step.")
    seeds: Whole = Field(3, le=10_000, description="Trainings for each row of the table.")
    base_seed: Natural | None = Field(
        None,
        description="The first seed of trainings and of random rows, which runs that set it alike share; unset: the "
        "run's own seed.",
        json_schema_extra=ONLY_IF_SET,
    )
    cache: Text | None = Field(
        None,
        description="Folder or URI of outcomes that several runs share; unset: RUN/report/cells.",
        json_schema_extra=NOT_IN_RESULT,
    )
    checkpoints: Whole = Field(
        5, le=10_000, description="Times that a training looks at the validation images; the best checkpoint is tested."
    )
    rows: tuple[Annotated[StrictStr, one_of(ROWS), listed(ROWS)], ...] = Field(
        ("distilled", "initial", "random", "herding", "k_center", "full"),
        description="Rows of the table; of the ways to select real images, the best on validation is shown.",
    )


class ArchRecipe(Section):
    """How a network other than the run's own is trained on a set, where it differs from `evaluate`."""

    epochs: Count | None = Field(None, description="As epochs of evaluate; unset: the same.")
    batch: Count | None = Field(None, description="As batch of evaluate; unset: the same.")
    lr: Positive | None = Field(None, description="As lr of evaluate; unset: the same.")
    momentum: Momentum | None = Field(None, description="As momentum of evaluate; unset: the same.")
    weight_decay: NotNegative | None = Field(None, description="As weight_decay of evaluate; unset: the same.")
    augment: Strategy | None = Field(None, description="As augment of evaluate; unset: the same.")
    cutmix: Share | None = Field(None, description="As cutmix of evaluate; unset: the same.")


Compiles = Literal[True, False, "trainings", "graphs"] | None
"""Which steps are compiled, once it is decided."""


class Runtime(Section):
    """How the work is spread. Only threads, device, compilation and precision touch the result, by rounding."""

    workers: Whole | None = Field(
        None,
        le=10_000,
        description="Most worker processes; unset: one for each GPU, else one for each core. The result does not "
        "depend on it.",
        json_schema_extra=NOT_IN_RESULT,
    )
    cpus_per_worker: Whole = Field(
        1, le=10_000, description="Cores of one worker, which are its threads; they touch the result by rounding."
    )
    gpus_per_worker: NotNegative | None = Field(
        None,
        le=1000,
        description="GPUs of one worker, a share of one or a whole number; unset: 1 where there are GPUs, else 0.",
    )
    memory_per_worker: Positive | None = Field(
        None,
        le=1_000_000,
        description="GiB of a machine's memory that one worker is sure of; unset: none is set aside.",
        json_schema_extra=NOT_IN_RESULT,
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="Where workers compute; unset: on their GPUs, or on the CPU where they have none."
    )
    address: Text | None = Field(
        None,
        description="host:port of a running Ray cluster; unset: what RAY_ADDRESS says, else a Ray of the run's own, "
        "on this machine.",
        json_schema_extra=NOT_IN_RESULT,
    )
    compile: Literal[True, False, "trainings", "graphs", "auto"] | None = Field(
        None,
        description="Compile the steps instead of running them eagerly; trainings, those of networks alone and not of "
        "matching; graphs, and capture each as a CUDA graph that is replayed, with runtime.device cuda alone; auto, "
        "what gains more by it in this run than it takes; unset: where networks are large, however few steps they are "
        "trained for.",
    )
    precision: Literal["float32", "bf16", "auto"] = Field(
        "float32",
        description="What convolutions take in: float32; bf16, inputs rounded to 8 bits of mantissa and added up in "
        "float32; auto, bf16 where the machine computes so and the network is large enough to gain, for matchers of "
        "features, and float32 for gradients and trajectories, whose accuracy suffers.",
        json_schema_extra=ONLY_IF_SET,
    )
    max_lost: Count = Field(
        3,
        description="Times that one task may be lost, with its worker or machine, before the run stops.",
        json_schema_extra=NOT_IN_RESULT,
    )
    task_minutes: Positive = Field(
        60,
        le=1_000_000,
        description="Longest time of one task, in minutes, before it counts as lost.",
        json_schema_extra=NOT_IN_RESULT,
    )
    checkpoint_seconds: NotNegative = Field(
        20, le=1e9, description="Least time between two checkpoints, in seconds.", json_schema_extra=NOT_IN_RESULT
    )
    idle_seconds: NotNegative = Field(
        60,
        le=1e9,
        description="Time after which a worker without work is given back, in seconds.",
        json_schema_extra=NOT_IN_RESULT,
    )
    page: StrictBool = Field(
        True,
        description="Draw the page of what is finished, in some seconds; off: only `dasm-ray report` draws it.",
        json_schema_extra=NOT_IN_RESULT,
    )
    tensorboard: StrictBool = Field(
        False,
        description="Write RUN/tensorboard while `distill` runs: distances, speeds, probes, accuracies, the images of "
        "each segment. Needs the extra tensorboard.",
        json_schema_extra=NOT_IN_RESULT,
    )

    @property
    def compiles(self) -> Compiles:
        """Which steps are compiled; None: all, where networks are large."""
        assert self.compile != "auto", "a run decides before it begins"
        return self.compile

    def rounding(self, device: str) -> tuple[str | int | bool | None, ...]:
        """What the last bits of a training on ``device`` depend on beside its recipe; a later key counts once set."""
        later = () if self.precision == "float32" else (self.precision,)
        # Where trainings alone are compiled, they are what they are where all is.
        return (self.cpus_per_worker, self.compiles and True, device, *later)


class RunConfig(Section):
    """A run of distillation, whole."""

    name: Annotated[StrictStr, Field(pattern=r"^\w[\w.-]*$", max_length=200)] = Field(
        "run", description="Names the default run directory, runs/NAME.", json_schema_extra=NOT_IN_RESULT
    )
    seed: Natural = Field(0, description="Every random number of the run follows from it.")
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
        {},
        description="How `compare` trains other architectures on a set, by the name of the architecture.",
        json_schema_extra=NOT_IN_RESULT,
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
        return self.synthetic.factor if self.synthetic.init in ("mix", *CHOSEN_STARTS) else 1

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
        depth = self.model.depth if arch == self.model.arch else None  # its own, where another norm is asked for
        model = self.model.model_copy(update={"arch": arch, "norm": norm or NORMS[arch][0], "depth": depth})
        changes = {name: recipe.model_dump(exclude_none=True) for name, recipe in self.networks.items()}
        evaluate = self.evaluate.model_copy(update=changes.get(model.arch, {}))
        return self.model_copy(update={"model": model, "evaluate": evaluate})

    @property
    def waits_for_classes(self) -> bool:
        """Whether the number of classes decides a key that results depend on: the size of groups, if there are any."""
        return self.synthetic.group_size is None and self.base.couples != "set"

    def for_classes(self, classes: int) -> RunConfig:
        """The configuration with what the number of classes decides filled in.

        Up to ten classes are two groups, as the key is read where it is unset. More are groups of GROUP_SIZE, which
        stands in the configuration from then on, since results depend on it.
        """
        if not self.waits_for_classes or classes <= 2 * GROUP_SIZE:
            return self
        return self.model_copy(update={"synthetic": self.synthetic.model_copy(update={"group_size": GROUP_SIZE})})

    def snapshots_of(self, segment: int) -> tuple[int, int]:
        """The range ``[first, last)`` of expert epochs that segment ``segment`` (from 0) is matched at."""
        rows = self.matcher.snapshots
        return rows[min(segment, len(rows) - 1)]

    def starts_of(self, segment: int) -> tuple[int, int, int]:
        """First, open and last start epoch of segment ``segment`` (from 0), before any shift."""
        rows = self.trajectory.starts
        return rows[min(segment, len(rows) - 1)]

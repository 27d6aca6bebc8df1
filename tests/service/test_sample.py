"""`service.sample` through its command: sheets, animations, sameness, and what it refuses."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service import sample
from service.config import Config
from service.engine.curriculum import Curriculum
from service.engine.panel import draw_panel, panel_columns
from service.engine.state import new_state
from service.errors import DataError, ServiceError, UsageError
from service.recording.pictures import GridLook, grid_png
from service.run.checkpoint import Checkpointer, Keep
from service.run.directory import RUN_KEY, RunDocument
from service.storage import open_storage
from service.storage.lock import RunLock
from tests.conftest import tiny_values
from tests.runs import sealed

MODELS: dict[str, dict[str, Any]] = {
    "biggan": {"width": 4, "latents": 12, "embedding": 4, "attention": 8, "classes": 3},
    "stylegan": {"width": 8, "latents": 8, "mapping_layers": 2},
    "progan": {"width": 8, "latents": 8},
    "dcgan": {"width": 8, "latents": 8, "classes": 3},
}
PHASES = [
    {"resolution": 8, "hold_images": 64, "batch": 16},
    {"resolution": 16, "fade_images": 64, "hold_images": 64, "batch": 16},
]


def config_of(family: str, run: Path) -> Config:
    model = {"family": family, "resolution": 16, "channels": 1, **MODELS[family]}
    values = tiny_values("unused", run, training={"precision": "fp32"})
    return Config(**(values | {"model": model, "phases": PHASES}))


def make_run(config: Config) -> None:
    """A run with pictures at some clocks and a committed checkpoint of untrained, spread weights."""
    torch.manual_seed(0)
    state = new_state(config, torch.device("cpu"))
    with torch.no_grad():
        for tensor in state.ema.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    storage = open_storage(config.run.dir)
    run = RunDocument(key="5f1d" * 8, fingerprint="f" * 64, config=config.model_dump())
    storage.put(RUN_KEY, run.to_bytes())
    curriculum = Curriculum(config.phases, 1)
    for clock in (32, 96, 192):
        state.clock = clock
        panel = draw_panel(config, state.ema, curriculum.before(clock).stage)
        sheet = grid_png(panel, GridLook(panel_columns(config), config.model.resolution))
        storage.put(f"pictures/grid-{clock:012d}.png", sheet)
    lock = RunLock(storage)
    saver = Checkpointer(storage, lock.acquire(), Keep(3), config.model_dump())
    saver.save(state)
    saver.wait()
    lock.release()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for family in MODELS:
        make_run(config_of(family, folder / family))
    return {family: folder / family for family in MODELS}


def draw(run: Path | str, sheet: str, out: Path, *flags: str) -> list[np.ndarray]:
    """The frames that the command wrote, as arrays."""
    sample.main(
        [str(run), sheet, "--out", str(out), "--pixels", "16", "--standing-batches", "2", *flags]
    )
    with Image.open(io.BytesIO(out.read_bytes())) as image:
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.asarray(image.convert("L")))
    return frames


def cells(sheet: np.ndarray, rows: int, columns: int, top: int = 0, left: int = 0) -> np.ndarray:
    """The 16 px images of a sheet, [rows, columns, 16, 16], after what captions take."""
    return np.array(
        [
            [
                sheet[top + 18 * r : top + 18 * r + 16, left + 18 * c : left + 18 * c + 16]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_a_grid_has_a_class_a_column_and_is_the_same_file_every_time(family, runs, tmp_path):
    columns = MODELS[family].get("classes", 5)
    flags = ("--rows", "3", "--columns", "5")
    (first,) = draw(runs[family], "grid", tmp_path / "a.png", *flags)
    draw(runs[family], "grid", tmp_path / "b.png", *flags)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert first.shape == (3 * 18 - 2, columns * 18 - 2)
    (other,) = draw(runs[family], "grid", tmp_path / "c.png", *flags, "--seed", "1")
    assert not np.array_equal(first, other)
    images = cells(first, 3, columns).reshape(3 * columns, -1)
    assert len(np.unique(images, axis=0)) == 3 * columns


def test_chosen_classes_are_the_columns_of_the_whole_grid(runs, tmp_path):
    (whole,) = draw(runs["biggan"], "grid", tmp_path / "a.png", "--rows", "1")
    (chosen,) = draw(runs["biggan"], "grid", tmp_path / "b.png", "--rows", "1", "--classes", "0,2")
    assert np.array_equal(cells(chosen, 1, 2)[0, 0], cells(whole, 1, 3)[0, 0])


def test_classes_are_chosen_by_name_and_named_over_their_columns(runs, tmp_path):
    named = tmp_path / "named"
    shutil.copytree(runs["biggan"], named)
    content = json.loads((named / RUN_KEY).read_text())
    (named / RUN_KEY).write_text(json.dumps(content | {"classes": ["daisy", "oak", "rose"]}))
    flags = ("--rows", "1", "--classes")
    (plain,) = draw(runs["biggan"], "grid", tmp_path / "a.png", *flags, "2,0")
    (chosen,) = draw(named, "grid", tmp_path / "b.png", *flags, "rose,0")
    assert np.array_equal(chosen[len(chosen) - len(plain) :], plain)
    assert chosen[: len(chosen) - len(plain)].any()
    with pytest.raises(
        UsageError, match="--classes lily: no such class; give one of daisy, oak, rose, or"
    ):
        draw(named, "grid", tmp_path / "c.png", *flags, "lily")


def test_truncation_brings_the_images_of_a_class_together(runs, tmp_path):
    flags = ("--rows", "6", "--classes", "1")
    (sheet,) = draw(runs["biggan"], "truncation", tmp_path / "t.png", *flags)
    columns = cells(sheet, 6, 6, top=16).astype(float)
    spread = columns.std(axis=0).mean(axis=(1, 2))
    assert spread[-1] < 0.25 * spread[0]


def test_psi_0_is_the_image_of_the_average_w(runs, tmp_path):
    (sheet,) = draw(runs["stylegan"], "truncation", tmp_path / "t.png", "--rows", "3", "--noise", "off")
    columns = cells(sheet, 3, 6, top=16)
    assert len(np.unique(columns[:, 3].reshape(3, -1), axis=0)) == 1
    assert len(np.unique(columns[:, 0].reshape(3, -1), axis=0)) == 3


def test_psi_by_layer_with_a_cutoff_leaves_the_layers_beyond(runs, tmp_path):
    flags = ("--rows", "2", "--columns", "2", "--noise", "off")
    (plain,) = draw(runs["stylegan"], "grid", tmp_path / "a.png", *flags)
    (beyond,) = draw(
        runs["stylegan"], "grid", tmp_path / "b.png", *flags, "--psi", "0.1", "--cutoff", "0"
    )
    (layered,) = draw(runs["stylegan"], "grid", tmp_path / "c.png", *flags, "--psi", "0.5,0.5,1,1,1,1")
    (cut,) = draw(runs["stylegan"], "grid", tmp_path / "d.png", *flags, "--psi", "0.5", "--cutoff", "2")
    assert np.array_equal(plain, beyond)
    assert np.array_equal(layered, cut)
    assert not np.array_equal(plain, cut)


@pytest.mark.parametrize("family", MODELS)
def test_an_interpolation_leads_from_one_image_to_the_next(family, runs, tmp_path):
    flags = ("--rows", "2", "--steps", "5", "--noise", "off", "--columns", "1")
    (sheet,) = draw(runs[family], "interpolation", tmp_path / "i.png", *flags)
    (ends,) = draw(
        runs[family], "grid", tmp_path / "g.png", "--rows", "4", "--noise", "off", "--columns", "1"
    )
    path, grid = cells(sheet, 2, 5), cells(ends, 4, 1)[:, 0]
    for row in range(2):
        for place, end in ((0, 2 * row), (-1, 2 * row + 1)):
            assert np.abs(path[row, place].astype(int) - grid[end]).max() <= 1


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_walk_visits_every_station_and_returns(suffix, runs, tmp_path):
    flags = ("--rows", "3", "--steps", "4", "--frame-ms", "50")
    frames = draw(runs["stylegan"], "interpolation", tmp_path / f"w{suffix}", *flags)
    again = tmp_path / f"again{suffix}"
    draw(runs["stylegan"], "interpolation", again, *flags)
    assert again.read_bytes() == (tmp_path / f"w{suffix}").read_bytes()
    assert len(frames) == 12
    steps = [
        np.abs(a.astype(float) - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)
    ]
    distances = [np.abs(frames[0].astype(float) - frame).mean() for frame in frames]
    assert steps[-1] < max(distances)


def test_a_timelapse_shows_the_panel_at_every_interval_with_its_stage(runs, tmp_path):
    frames = draw(runs["biggan"], "timelapse", tmp_path / "t.webp")
    assert len(frames) == 3
    for frame, clock in zip(frames, (32, 96, 192), strict=True):
        with Image.open(runs["biggan"] / f"pictures/grid-{clock:012d}.png") as picture:
            sheet = np.asarray(picture)
            assert np.array_equal(frame[16:, : sheet.shape[1]], sheet)
        assert frame[:16].max() > 128  # a caption


def test_a_timelapse_without_usable_grids_says_so(tmp_path):
    run = tmp_path / "run"
    make_run(config_of("dcgan", run))
    for picture in sorted((run / "pictures").iterdir())[1:]:
        picture.unlink()
    (run / "pictures" / "grid-000000000033.png").write_bytes(b"")
    with pytest.raises(DataError, match="its clock is not one of this run's; delete it"):
        draw(run, "timelapse", tmp_path / "t.gif")
    (run / "pictures" / "grid-000000000033.png").unlink()
    (run / "pictures" / "grid-000000000032.png").rename(run / "pictures" / "grid-000000000208.png")
    with pytest.raises(DataError, match="all its grids are later"):
        draw(run, "timelapse", tmp_path / "t.gif")
    (run / "pictures" / "grid-000000000208.png").unlink()
    with pytest.raises(DataError, match="no grids there"):
        draw(run, "timelapse", tmp_path / "t.gif")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda manifest: manifest.pop("config"), r"manifest\.json: damaged .config: Field required"),
        (lambda manifest: manifest.update(version=1), "has version 1, but this service reads version 2"),
        (lambda manifest: manifest.pop("version"), "has no version, but this service reads version 2"),
        (lambda manifest: manifest.update(more=1), r"manifest\.json: damaged .more: Extra inputs"),
        (lambda manifest: manifest["state"].update(clock=-1), r"damaged .state\.clock: Input should be"),
        (lambda manifest: manifest["files"].pop("ema.pt"), r"damaged .files: Value error, files are"),
        (lambda manifest: manifest["files"].pop("optimizer_d.pt"), r"damaged .files: .* files are"),
        (
            lambda manifest: manifest["files"]["ema.pt"].pop("sha256"),
            r"manifest\.json: damaged .files\.ema\.pt\.sha256: Field required",
        ),
        (lambda manifest: manifest["config"]["model"].update(width=9), "another version"),
        (lambda manifest: manifest["files"]["ema.pt"].update(bytes=5), "restore it from a copy"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_words(spoil, words, tmp_path):
    run = tmp_path / "run"
    make_run(config_of("dcgan", run))
    (file,) = run.glob("checkpoints/*/manifest.json")
    manifest = json.loads(file.read_text())
    spoil(manifest)
    file.write_bytes(sealed(manifest))
    with pytest.raises(DataError, match=words):
        draw(run, "grid", tmp_path / "x.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", r"run\.json: damaged .*; restore it from a copy"),
        (b"{}", r"run\.json: has no version, but this service reads version 2"),
        (None, r"run\.json: "),
    ],
)
def test_a_run_json_that_is_damaged_or_gone_is_named(content, words, tmp_path):
    make_run(config_of("dcgan", tmp_path / "run"))
    file = tmp_path / "run" / "run.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ServiceError, match=words):
        draw(tmp_path / "run", "grid", tmp_path / "x.png")


def test_style_mixing_takes_the_named_layers_from_the_column(runs, tmp_path):
    flags = ("--rows", "1", "--columns", "2", "--noise", "off")
    (sheet,) = draw(runs["stylegan"], "mixing", tmp_path / "m.png", *flags)
    table = cells(sheet, 4, 3, left=64)
    coarse, middle, fine = table[1], table[2], table[3]
    for row in (coarse, middle, fine):
        for column in (1, 2):
            assert not np.array_equal(row[column], row[0])
            assert not np.array_equal(row[column], table[0, column])


def test_noise_changes_details_and_its_absence_none(runs, tmp_path):
    (sheet,) = draw(runs["stylegan"], "noise", tmp_path / "n.png", "--rows", "2")
    table = cells(sheet, 2, 6, top=16)
    (plain,) = draw(
        runs["stylegan"], "grid", tmp_path / "g.png", "--rows", "2", "--columns", "1", "--noise", "off"
    )
    assert np.array_equal(table[:, 0], cells(plain, 2, 1)[:, 0])
    assert len(np.unique(table[0, :5].reshape(5, -1), axis=0)) == 5


def test_a_lower_rung_can_be_drawn(runs, tmp_path):
    (sheet,) = draw(runs["progan"], "grid", tmp_path / "g.png", "--rows", "1", "--resolution", "8")
    image = cells(sheet, 1, 1)[0, 0]
    assert np.array_equal(image, image[::2, ::2].repeat(2, 0).repeat(2, 1))


def test_a_checkpoint_in_s3_gives_the_file_that_the_local_one_gives(s3, tmp_path):
    for address in (f"{s3}/sample-run", str(tmp_path / "run")):
        values = config_of("dcgan", tmp_path).model_dump()
        values["run"]["dir"] = address
        values["tracking"]["uri"] = "http://unused"
        make_run(Config(**values))
    flags = ("--standing-batches", "2")
    sample.main([f"{s3}/sample-run", "--out", f"{s3}/drawn/a.PNG", *flags])
    sample.main([str(tmp_path / "run"), "--out", str(tmp_path / "b.png"), *flags])
    assert open_storage(f"{s3}/drawn").get("a.PNG") == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("family", "flags", "words"),
    [
        ("dcgan", ["mixing"], "dcgan has no styles"),
        ("dcgan", ["--psi", "0.5"], "dcgan has no w; use --truncation"),
        ("progan", ["truncation"], "progan normalises its latents"),
        ("stylegan", ["--truncation", "0.5"], "use --psi"),
        ("stylegan", ["--psi", "0.5,0.5"], "2 values for 6 layers"),
        ("stylegan", ["--cutoff", "9"], "there are 6 layers"),
        ("stylegan", ["--cutoff", "2"], "--cutoff 2: without --psi nothing is truncated; add --psi 0"),
        ("stylegan", ["--classes", "1"], "no classes"),
        ("dcgan", ["--classes", "1,7"], "--classes 7: no such class; give a whole number from 0 to 2"),
        ("dcgan", ["--classes", "a"], "--classes a: no such class; give a whole number from 0 to 2"),
        ("dcgan", ["--classes", "1,,2"], "write classes as 0,3,5 or daisy,rose"),
        ("dcgan", ["--step", "3"], r"--step: no such option; did you mean --steps\?"),
        ("dcgan", ["collage"], "sheet collage: choose grid, truncation, .*, noise or images"),
        ("dcgan", ["--seed", "-1"], "--seed -1: give a whole number from 0 to 2147483647"),
        ("dcgan", ["--frame-ms", "9"], "--frame-ms 9: give a whole number from 10 to 60000"),
        ("dcgan", ["--truncation", "-1"], "above 0"),
        ("dcgan", ["--resolution", "32"], r"--resolution 32: not trained yet; choose one of 8, 16$"),
        ("dcgan", ["--rows", "0"], "--rows 0: give a whole number from 1 to 1000"),
        ("dcgan", ["--out", "x.jpg"], "written as .png"),
        ("dcgan", ["--out", "s3://x.png"], "a bucket, but no file in it"),
        ("dcgan", ["timelapse", "--out", "x.png"], "written as .webp or .gif"),
        ("dcgan", ["timelapse", "--out", "x.gif", "--resolution", "8"], "leave it out"),
        ("dcgan", ["--truncation", "nan"], "above 0"),
        ("stylegan", ["--psi", "nan"], "such as 0.7"),
        ("stylegan", ["truncation", "--psi", "0.5"], "shows several values"),
        ("progan", ["--psi", "0.5"], "progan has no w; leave them out"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_remedy(family, flags, words, runs, tmp_path):
    with pytest.raises(UsageError, match=words):
        sample.main([str(runs[family]), "--out", str(tmp_path / "x.png"), *flags])
    assert not (tmp_path / "x.png").exists()


def test_an_address_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(UsageError, match="no committed checkpoint"):
        sample.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.png")])

"""Write the runs' Grafana dashboard to stdout; `make docs` writes it into the chart.

Every query names the run by the variable `run`, and keeps what tells its targets apart.
"""

import sys
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableHide,
    VariableRefresh,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
RUN = '{run=~"$run"}'
STAT_WIDTH, STAT_HEIGHT = 4, 4
CURVE_WIDTH, CURVE_HEIGHT = 8, 8
_Kind = TypeVar("_Kind", stat.Panel, timeseries.Panel)


@dataclass(frozen=True)
class Panel:
    """A panel: what it shows, the unit as Grafana calls it, and its queries by legend."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str = ""


STATE = [
    Panel("Training", "bool_on_off", {"{{run}}": f"max by (run) (gan_up{RUN})"}),
    Panel("Images trained", "short", {"{{run}}": f"max by (run) (gan_images{RUN})"}),
    Panel("Images per second", "short", {"{{run}}": f"max by (run) (gan_images_per_s{RUN})"}),
    Panel("Time left", "s", {"{{run}}": f"max by (run) (gan_left_seconds{RUN})"}),
    Panel("Workers", "short", {"{{run}}": f"max by (run) (gan_workers{RUN})"}),
    Panel(
        "Collapse",
        "short",
        {"{{run}}": f"max by (run) (gan_collapse{RUN})"},
        "0 healthy, 1 warning, 2 collapsed",
    ),
]
CURVES = {
    "Training": [
        Panel("Images per second", "short", {"{{run}}": f"gan_images_per_s{RUN}"}),
        Panel("Resolution", "short", {"{{run}}": f"gan_resolution{RUN}"}),
        Panel(
            "Losses",
            "short",
            {"{{run}} D": f"gan_loss_d{RUN}", "{{run}} G": f"gan_loss_g{RUN}"},
        ),
        Panel("Margin", "short", {"{{run}}": f"gan_margin{RUN}"}, "Real logits − fake logits."),
        Panel(
            "Gradient norms",
            "short",
            {"{{run}} D": f"gan_grad_norm_d{RUN}", "{{run}} G": f"gan_grad_norm_g{RUN}"},
        ),
        Panel(
            "Variety",
            "short",
            {
                "{{run}} over all": f"gan_variety_pixels{RUN}",
                "{{run}} within classes": f"gan_within_pixels{RUN}",
            },
            "Of generated images over that of real ones: far below 1, the images become alike.",
        ),
        Panel("Collapse by kind", "short", {"{{run}} {{kind}}": f"gan_collapse{RUN}"}),
        Panel("Scores", "short", {"{{run}} {{name}}": f"gan_score{RUN}"}),
        Panel(
            "Rewinds and restarts",
            "short",
            {
                "{{run}} rewinds": f"increase(gan_rewinds_total{RUN}[$__rate_interval])",
                "{{run}} restarts": f"increase(gan_restarts_total{RUN}[$__rate_interval])",
            },
        ),
    ],
    "Workers and data": [
        Panel(
            "Workers",
            "short",
            {"{{run}}": f"gan_workers{RUN}", "{{run}} wanted": f"gan_workers_wanted{RUN}"},
        ),
        Panel(
            "Slowest worker",
            "short",
            {"{{run}}": f"gan_slowest_worker{RUN}"},
            "The slowest worker's device over the median.",
        ),
        Panel(
            "Waiting for data",
            "percentunit",
            {
                "{{run}} mean": f"gan_data_wait_share{RUN}",
                "{{run}} largest": f"gan_data_wait_share_largest{RUN}",
            },
        ),
        Panel("Read", "Bps", {"{{run}}": f"rate(gan_data_bytes{RUN}[$__rate_interval])"}),
        Panel(
            "Requests and retries",
            "reqps",
            {
                "{{run}} requests": f"rate(gan_data_requests{RUN}[$__rate_interval])",
                "{{run}} retries": f"rate(gan_data_retries{RUN}[$__rate_interval])",
            },
        ),
        Panel(
            "Cache",
            "reqps",
            {
                "{{run}} hits": f"rate(gan_cache_hits{RUN}[$__rate_interval])",
                "{{run}} misses": f"rate(gan_cache_misses{RUN}[$__rate_interval])",
            },
        ),
    ],
    "Devices": [
        Panel(
            "A kernel runs",
            "percentunit",
            {"{{run}}": f"gan_gpu_busy{RUN}"},
            "On the GPU that is idle most.",
        ),
        Panel(
            "Share of the peak",
            "percentunit",
            {"{{run}}": f"gan_mfu{RUN}"},
            "Operations of products and convolutions over what the device could take in bf16.",
        ),
        Panel("GPU memory", "percentunit", {"{{run}}": f"gan_gpu_memory_share{RUN}"}, "The fullest."),
        Panel(
            "Temperature", "celsius", {"{{run}}": f"gan_gpu_temperature_c{RUN}"}, "The hottest GPU's."
        ),
        Panel("Power", "watt", {"{{run}}": f"gan_gpu_power_w{RUN}"}, "Of all GPUs."),
        Panel(
            "Hosts",
            "percentunit",
            {
                "{{run}} CPU": f"gan_host_cpu_share{RUN}",
                "{{run}} memory": f"gan_host_memory_share{RUN}",
                "{{run}} in the step": f"gan_host_step_share{RUN}",
            },
            "The busiest and the fullest; the host's time for launching cycles.",
        ),
    ],
    "What is safe": [
        Panel("Age of the last report", "s", {"{{run}}": f"gan_progress_age_seconds{RUN}"}),
        Panel(
            "Age of the last checkpoint and score",
            "s",
            {
                "{{run}} checkpoint": f"gan_checkpoint_age_seconds{RUN}",
                "{{run}} score": f"gan_score_age_seconds{RUN}",
            },
        ),
        Panel("Seconds of a checkpoint", "s", {"{{run}}": f"gan_checkpoint_seconds{RUN}"}),
        Panel(
            "Records that MLflow lacks",
            "short",
            {
                "{{run}} waiting": f"gan_spool_segments{RUN}",
                "{{run}} refused": f"gan_records_refused{RUN}",
            },
        ),
        Panel(
            "Storage retries",
            "short",
            {
                "{{run}} workers": f"increase(gan_storage_retries{RUN}[$__rate_interval])",
                "{{run}} recorder": f"increase(gan_recorder_storage_retries{RUN}[$__rate_interval])",
            },
        ),
        Panel(
            "Size of a checkpoint, free disk",
            "bytes",
            {
                "{{run}} checkpoint": f"gan_checkpoint_bytes{RUN}",
                "{{run}} run.dir": f"gan_run_dir_free_bytes{RUN}",
                "{{run}} cache": f"gan_cache_free_bytes{RUN}",
            },
            "Only disks have room to run out of: in S3, run.dir has no curve.",
        ),
    ],
}


def build() -> dashboard.Dashboard:
    """The whole dashboard."""
    board = (
        dashboard.Dashboard("GAN training")
        .uid("gan-training")
        .tags(["gan-training"])
        .refresh("30s")
        .time("now-6h", "now")
        .with_variable(
            dashboard.DatasourceVariable("source").type("prometheus").hide(VariableHide.DONT_HIDE)
        )
        .with_variable(
            dashboard.QueryVariable("run")
            .datasource(SOURCE)
            .query("label_values(gan_up, run)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
        )
    )
    for panel in STATE:
        board.with_panel(
            _filled(stat.Panel().graph_mode(BigValueGraphMode.NONE), panel, STAT_WIDTH, STAT_HEIGHT)
        )
    for title, panels in CURVES.items():
        board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(_filled(timeseries.Panel(), panel, CURVE_WIDTH, CURVE_HEIGHT))
    return board


def _filled(builder: _Kind, panel: Panel, width: int, height: int) -> _Kind:
    builder.title(panel.title).description(panel.description).unit(panel.unit)
    builder.datasource(SOURCE).span(width).height(height)
    for letter, (legend, query) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        builder.with_target(prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend))
    return builder


def text() -> str:
    """The dashboard as Grafana imports it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())

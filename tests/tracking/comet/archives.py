"""Reading what runs have written: Comet's archives and metrics files."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Archive:
    """What a Comet archive holds."""

    path: Path

    def __post_init__(self):
        with zipfile.ZipFile(self.path) as opened:
            assert opened.testzip() is None
            self.experiment = json.loads(opened.read("experiment.json"))
            lines = opened.read("messages.json").decode().splitlines()
            self.files = {name: opened.read(name) for name in opened.namelist()}
        self.messages = [json.loads(line) for line in lines]

    def of(self, kind):
        return [one["payload"] for one in self.messages if one["type"] == kind]

    @property
    def metrics(self):
        """{(name, step): value}."""
        found = [one["metric"] for one in self.of("metric_msg")]
        return {(one["metricName"], one["step"]): one["metricValue"] for one in found}

    @property
    def parameters(self):
        """Hyper-parameters, without what Comet itself adds at every step."""
        found = [one.get("param") or one["params"] for one in self.of("parameter_msg")]
        return {one["paramName"]: one["paramValue"] for one in found if one["source"] == "manual"}

    @property
    def code(self):
        """{name: text} of the source files."""
        uploads = [one for one in self.of("file_upload") if one["upload_type"] == "source_code"]
        return {
            one["additional_params"]["fileName"]: self.files[one["file_path"]].decode()
            for one in uploads
        }

    @property
    def others(self):
        return {one["key"]: one["value"] for one in self.of("log_other")}

    @property
    def histograms(self):
        """{(name, step): content}."""
        uploads = [one for one in self.of("file_upload") if one["upload_type"] == "histogram3d"]
        return {
            (one["additional_params"]["fileName"], one["additional_params"]["step"]): json.loads(
                self.files[one["file_path"]]
            )
            for one in uploads
        }


def archive_in(folder):
    """The one archive of a run."""
    (path,) = (folder / "comet").iterdir()
    return Archive(path)


def rows_in(folder):
    """The rows of a run's metrics file, without empty cells."""
    with (folder / "metrics.csv").open() as stream:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(stream)]


def values_in(folder):
    """{(name, step): value} of a run's metrics file, as an archive has it."""
    return {
        (name, int(row["step"])): float(value)
        for row in rows_in(folder)
        for name, value in row.items()
        if name not in ("step", "epoch")
    }

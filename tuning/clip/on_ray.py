"""Tuning on the machines of a Ray cluster: Ray Train starts the processes, they train as they do under torchrun.

The shards and `out` lie on a file system that all nodes see. A process or node that dies costs the steps since the last
checkpoint: Ray starts all processes again, and they go on from there.
"""

from __future__ import annotations

import logging
from typing import Any

from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError, how_to_install
from maskmine.tuning.clip.settings import RayTrain, Tuning
from maskmine.tuning.console import plain_console
from maskmine.tuning.ray_start import starting_ray

_FAULTS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (InputError, OtherPlanError, IncompleteError)}


def tune_on_ray(settings: Tuning, *, ray_train: RayTrain) -> None:
    """Train, or go on with what is left. What processes say goes to Ray's logs, and to `log.jsonl`.

    A Ray that this process is connected to is used. Raises what `tune` does, and IncompleteError when processes died
    too often.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise InputError(f"ray: Ray Train is not installed; {how_to_install('ray-train')}") from error

    connected = ray.is_initialized()
    if not connected:
        with starting_ray("ray"):
            ray.init(
                ray_train.address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
    try:
        trainer = TorchTrainer(
            _take_part,
            train_loop_config={"settings": settings.model_dump_json(), "gpus": ray_train.gpus},
            scaling_config=ScalingConfig(
                num_workers=ray_train.processes,
                use_gpu=ray_train.gpus == "one_each",
                resources_per_worker={"CPU": ray_train.cpus_per_process},
            ),
            run_config=RunConfig(
                name="ray", storage_path=settings.out, failure_config=FailureConfig(max_failures=ray_train.restarts)
            ),
        )
        _fit(trainer)
    finally:
        if not connected:
            ray.shutdown()


def _fit(trainer: Any) -> None:
    """Run to the end; a fault that `tune` expects comes out of its many wrappings."""
    from ray.train import TrainingFailedError, WorkerGroupError

    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
        for failure in failures:
            # Ray hands over a process's exception as the text of its traceback, which ends with `module.Kind: message`.
            name, _, message = str(failure).strip().rpartition("\n")[2].partition(": ")
            if (kind := _FAULTS.get(name.rpartition(".")[2])) is not None:
                raise kind(message) from error
        line = " ".join(str(error).splitlines()[:2])
        raise IncompleteError(f"Ray: processes died too often ({line}); see its logs, and run it again") from error


def _take_part(config: dict[str, str]) -> None:
    """What each process does; Ray has joined them and set `RANK`, `WORLD_SIZE` …"""
    import ray.train.torch

    from maskmine.tuning.clip.train import tune

    settings = Tuning.model_validate_json(config["settings"])
    if config["gpus"] == "one_each":
        settings = settings.model_copy(update={"device": str(ray.train.torch.get_device())})
    tune(settings, console=plain_console(quiet=True))

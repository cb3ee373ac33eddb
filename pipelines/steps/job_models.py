"""What models a job runs, as far as an engine has to know before it starts workers."""

from __future__ import annotations

from maskmine.mining.models.pretrained import HasWeights
from maskmine.pipelines.steps.jobs import Job, VocabularyJob
from maskmine.pipelines.steps.regions_jobs import EmbeddingsJob, ProposalsJob


def runs_models(job: Job) -> bool:
    """Whether a job runs models: annotated masks are proposed by none."""
    return job.device is not None and not (isinstance(job, ProposalsJob) and not job.settings.runs_models)


def weights_bytes(job: Job) -> int:
    """The size of the weights that a worker loads for a job; 0 where it is not known."""
    settings = getattr(job, "settings", None)
    if isinstance(job, EmbeddingsJob):  # the masks are known
        settings = job.settings.clip
    elif isinstance(job, VocabularyJob):
        settings = job.clip
    return settings.weights_bytes() if isinstance(settings, HasWeights) else 0

